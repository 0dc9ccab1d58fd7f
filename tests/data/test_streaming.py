"""Facts about streaming: tars from anywhere, what is passed over, and that nothing in them runs."""

import gzip
import io
import json
import logging
import tarfile
from types import SimpleNamespace

import fsspec
import pytest
import torch
from PIL import Image

from ldm.data import DataError
from ldm.data.streaming import FEW, StreamingPictureData
from ldm.data.tars import read_samples, shard_urls


def encoded(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), (number, 255 - number, 0)).save(buffer, format=kind)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def whole(first: int, count: int = 20) -> dict[str, bytes]:
    numbers = range(first, first + count)
    return {
        f"{n:03d}.{extension}": data
        for n in numbers
        for extension, data in (("png", encoded(n)), ("txt", f"number {n}".encode()))
    }


@pytest.fixture
def tars(tmp_path):
    """Pattern of four tars of 20 samples."""
    for number in range(4):
        (tmp_path / f"{number}.tar").write_bytes(tar_of(whole(20 * number)))
    return f"{tmp_path}/{{0..3}}.tar"


def streaming(
    shards: str, *, rank: int = 0, world: int = 1, steps: int = 10, start: int = 0, **options
) -> list:
    defaults = {"size": 16, "batch_size": 4, "shuffle": 15}
    data = StreamingPictureData(root=shards, **(defaults | options))
    data.trainer = SimpleNamespace(
        max_steps=steps, accumulate_grad_batches=1, global_rank=rank, world_size=world
    )
    loader = data.train_dataloader()
    loader.load_state_dict({"position": start})
    return list(loader)


def texts(batches) -> list[str]:
    return [text for batch in batches for text in batch["captions"]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2])
def test_ranks_have_equal_batches_positions_of_their_own_and_other_samples(tars, workers, world):
    ranks = [streaming(tars, rank=r, world=world, num_workers=workers) for r in range(world)]
    assert {len(own) for own in ranks} == {10}
    positions = torch.cat([batch["position"] for own in ranks for batch in own]).tolist()
    assert sorted(positions) == list(range(40 * world))
    assert world == 1 or texts(ranks[0]) != texts(ranks[1])


def test_pictures_come_with_their_own_captions_and_identities(tars):
    index_of = {}
    for batch in streaming(tars, steps=40):
        for image, text, index in zip(
            batch["image"], batch["captions"], batch["index"].tolist(), strict=True
        ):
            number = int(text.removeprefix("number "))
            assert image[:, 8, 8].tolist() == [number, 255 - number, 0]
            assert index_of.setdefault(number, index) == index
    assert len(set(index_of.values())) == len(index_of) > 40


def test_seed_and_start_decide_what_is_drawn(tars):
    first, again, other, later = (
        texts(streaming(tars, **options)) for options in ({}, {}, {"seed": 1}, {"start": 4})
    )
    assert first == again
    assert other != first
    assert later != first[4:]  # a resumed training sees other shards, not those of its start once more
    assert first[:20] != sorted(first[:20])  # nor are shards read in order


def test_it_says_that_it_is_not_exactly_resumable(tars, caplog):
    with caplog.at_level(logging.WARNING):
        streaming(tars, steps=1)
    assert "streaming 4 shards: not exactly resumable" in caplog.text


def test_any_url_of_fsspec_will_do(tars):
    for number in range(4):
        with fsspec.open(f"memory://set/{number}.tar", "wb") as stream:
            stream.write(tar_of(whole(20 * number)))
    assert texts(streaming("memory://set/{0..3}.tar")) == texts(streaming("memory://set/{0..3}.tar"))


@pytest.mark.parametrize("root", ["{}", "file://{}", "memory://lists"])
def test_shards_are_named_by_braces_or_by_a_list(tmp_path, root):
    path = f"{root.format(tmp_path)}/list.txt"
    with fsspec.open(path, "wt") as stream:
        stream.write("\ufeffa{0..1}.tar\r\n\rmemory://set/b.tar\n")
    assert shard_urls(path) == ["a0.tar", "a1.tar", "memory://set/b.tar"]


@pytest.mark.parametrize(
    ("shards", "sentence"),
    [
        ("pipe:touch canary", r"'pipe:touch canary' is refused: data are read from paths and from http://"),
        ("{a.tar,pipe:touch canary}", "'pipe:touch canary' is refused"),
        ("reference://a.tar::file:///tmp/refs.json", "'reference://a.tar::file.*' is refused"),
        ("simplecache::s3://set/a.tar", "'simplecache::s3.*' is refused"),
        ("s3://set/a.tar::file:///etc/passwd", "is refused"),
        ("data:application/x-tar;base64,AAAA", "is refused"),
        ("ssh://host/a.tar", "is refused"),
        ("HTTP://host/a.tar", "is refused"),
        ("{0..999999999999}.tar", "its braces stand for more than 1,000,000 shards"),
        ("{x{0..99999}{0..99999},y}.tar", "its braces stand for more than 1,000,000 shards"),
        ("{x" + "{a,b}" * 40 + ",y}.tar", "its braces stand for more than 1,000,000 shards"),
        ("{a,b}" * 40, "its braces stand for more than 1,000,000 shards"),
        ("{0..9" + "9" * 400 + "}.tar", "its braces stand for more than 1,000,000 shards"),
        ("", "names no shards"),
        ("nowhere.txt", "list of shards nowhere.txt can't be read"),
        ("memory://nowhere.txt", "list of shards memory://nowhere.txt can't be read"),
        ("a.tar,b://c.tar", "'a.tar,b://c.tar' is refused"),
        ("{a,b.tar", "Unbalanced braces"),
    ],
)
def test_what_names_no_shards_is_refused(shards, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=sentence):
        shard_urls(shards)
    assert not list(tmp_path.iterdir())


def test_members_that_are_no_pictures_or_texts_are_passed_over(tmp_path):
    odd = {}
    for name, kind in (
        ("link.png", tarfile.SYMTYPE),
        ("hard.txt", tarfile.LNKTYPE),
        ("dev.png", tarfile.CHRTYPE),
    ):
        odd[name] = tarfile.TarInfo()
        odd[name].type, odd[name].linkname = kind, "/etc/passwd"
    odd |= {"evil.pyd": b"x", "evil.pickle": b"x", "evil.pth": b"x", "evil.npy": b"x", "README": b"x"}
    (tmp_path / "odd.tar").write_bytes(tar_of(odd | {"../x.png": encoded(1), "../x.txt": b"text"}))
    (sample,) = read_samples(str(tmp_path / "odd.tar"))
    assert set(sample) == {"__key__", "__url__", "png", "txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["odd.tar"]


@pytest.mark.parametrize(
    "damage",
    [
        {"d.png": b"no picture", "d.txt": b"text"},
        {"d.png": encoded(1)[:60], "d.txt": b"text"},
        {"d.png": encoded(1)},
        {"d.txt": b"text"},
        {"d.png": encoded(1), "d.jpg": encoded(1, "JPEG"), "d.txt": b"text"},
        {"d.png": encoded(1), "d.txt": b"  "},
        {"d.png": encoded(1), "d.txt": b"it\x92s"},
        {"d.png": encoded(1), "d.json": b"["},
        {"d.png": encoded(1), "d.json": b"[" * 100_000},
        {"d.png": encoded(1), "d.json": b'{"texts": [3]}'},
        {"d.png": encoded(1), "d.json": b'{"caption": null}'},
    ],
)
def test_a_damaged_sample_is_counted_named_and_passed_over(tmp_path, caplog, damage):
    (tmp_path / "0.tar").write_bytes(tar_of(whole(0, 60) | damage))
    with caplog.at_level(logging.WARNING):
        assert "text" not in texts(streaming(f"{tmp_path}/0.tar", steps=20, shuffle=0))
    assert "passed over: sample 'd' of" in caplog.text
    assert "1 damaged among 61 samples" in caplog.text


@pytest.mark.parametrize("record", [{"caption": "a wall"}, {"texts": ["a wall"]}])
def test_captions_may_lie_in_json(tmp_path, record):
    (tmp_path / "0.tar").write_bytes(
        tar_of({"a.webp": encoded(1, "WEBP"), "a.json": json.dumps(record).encode()})
    )
    assert set(texts(streaming(f"{tmp_path}/0.tar", steps=2))) == {"a wall"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged or can't be read"),
        (bytes(10240), "holds no samples"),
        (tar_of({}), "holds no samples"),
        (b"garbage" * 1000, "damaged or can't be read"),
        (tar_of(whole(0, 1))[:700], "damaged or can't be read"),
        (tar_of({"a.png": b"x", "a.PNG": b"x"}), "it has a.png twice"),
    ],
)
def test_nothing_but_damage_ends_in_a_sentence(tmp_path, content, reason):
    (tmp_path / "0.tar").write_bytes(content)
    sentence = rf"{FEW + 1} damaged among \d+ samples, more than .*; the last: shard .*{reason}"
    for workers in (0, 1) if content == b"" else (0,):
        with pytest.raises(DataError, match=sentence):
            streaming(f"{tmp_path}/0.tar", num_workers=workers, damaged_share=0.0)


def test_a_cut_tar_gives_the_samples_before_the_cut(tmp_path, caplog):
    (tmp_path / "0.tar").write_bytes(tar_of(whole(0))[:20000])
    with caplog.at_level(logging.WARNING):
        seen = set(texts(streaming(f"{tmp_path}/0.tar", steps=10, shuffle=0)))
    assert seen == {f"number {n}" for n in range(len(seen))}
    assert "0.tar is damaged or can't be read" in caplog.text


def test_gzip_is_read_whatever_its_name(tmp_path):
    (tmp_path / "0.tar").write_bytes(gzip.compress(tar_of(whole(0))))
    assert len(set(texts(streaming(f"{tmp_path}/0.tar")))) > 10
