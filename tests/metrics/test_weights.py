"""Weights come whole or not at all."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file

from ldm.metrics.weights import KNOWN, Weights, describe, fetch, load_strictly, locate, read_state

CONTENT = bytes(range(256)) * 10_000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_WEIGHTS", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def published(tmp_path, monkeypatch, home):
    """A server with one file, entered in the table as `net`."""
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "net.pth").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "server")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    entry = Weights(
        url=f"http://127.0.0.1:{server.server_port}/net.pth",
        bytes=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        licence="MIT",
    )
    monkeypatch.setitem(KNOWN, "net", entry)
    yield tmp_path / "server" / "net.pth"
    server.shutdown()
    server.server_close()


def test_fetched_weights_are_the_published_ones_and_are_found(published, home):
    assert fetch("net", progress=False).read_bytes() == CONTENT
    assert locate("net") == (home / "net.pth", KNOWN["net"].sha256)
    published.unlink()
    assert fetch("net", progress=False) == home / "net.pth"  # not asked for again


def test_another_file_on_the_server_leaves_nothing(published, home):
    published.write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(ValueError, match=r"net\.pth have sha256 .* expected .*nothing was kept"):
        fetch("net", progress=False)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("fault", ["no server", "no file"])
def test_without_the_server_one_sentence_says_what_to_do(published, home, monkeypatch, fault):
    url = {"no server": "http://127.0.0.1:9/net.pth", "no file": KNOWN["net"].url.replace("net", "other")}[
        fault
    ]
    monkeypatch.setitem(KNOWN, "net", KNOWN["net"]._replace(url=url))
    with pytest.raises(ValueError, match=f"can't be fetched from {url} .*download that file and put it at"):
        fetch("net", progress=False)
    assert list(home.iterdir()) == []


def test_weights_that_are_not_there_name_the_command(home):
    with pytest.raises(ValueError, match=r"'inception' are not at .* python -m ldm\.evaluate fetch=true"):
        locate("inception")


def test_a_file_of_ones_own_needs_its_own_hash(tmp_path):
    path = tmp_path / "mine.pth"
    path.write_bytes(CONTENT)
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    assert locate("inception", path, sha256=sha256) == (path, sha256)
    with pytest.raises(ValueError, match="expected 6726825d0af5"):
        locate("inception", path)


def test_what_is_shown_before_a_download_is_the_whole_table():
    shown = describe(KNOWN)
    for name, entry in KNOWN.items():
        line = next(line for line in shown.splitlines() if line.startswith(f"{name}: "))
        assert all(part in line for part in (entry.sha256, entry.licence, entry.url))
        assert len(entry.sha256) == 64
        assert entry.url.startswith("https://")
    assert "inception: 95.6 MB" in shown
    with pytest.raises(ValueError, match="no known weights 'other'; there are: inception"):
        describe(["other"])


def test_states_are_read_without_running_anything(tmp_path):
    state = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    torch.save(state, tmp_path / "net.pth")
    save_file(state, tmp_path / "net.safetensors")
    for name in ("net.pth", "net.safetensors"):
        assert torch.equal(read_state(tmp_path / name)["weight"], state["weight"])
    torch.save({"weight": torch.ones(1), "more": threading.Barrier}, tmp_path / "code.pth")
    (tmp_path / "text.pth").write_text("not a state")
    for name in ("code.pth", "text.pth"):
        with pytest.raises(ValueError, match=f"{name} are no file of tensors alone"):
            read_state(tmp_path / name)


def test_weights_of_another_shape_are_refused(tmp_path):
    state = {"weight": torch.ones(5, 3), "bias": torch.zeros(2)}
    with pytest.raises(ValueError, match=r"1 differ, first 'weight' with shape \(5, 3\), expected \(2, 3\)"):
        load_strictly(torch.nn.Linear(3, 2), state, source=tmp_path / "net.pth")
    with pytest.raises(ValueError, match="first 'weight' with shape missing"):
        load_strictly(torch.nn.Linear(3, 2), {"bias": torch.zeros(2)}, source=tmp_path / "net.pth")


def test_the_folder_can_be_chosen(home, monkeypatch):
    assert KNOWN["alexnet"].path.parent == home
    monkeypatch.delenv("LDM_WEIGHTS")
    assert KNOWN["alexnet"].path.parent.parts[-3:] == (".cache", "ldm", "weights")
