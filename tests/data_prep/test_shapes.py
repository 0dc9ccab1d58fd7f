"""Shards of shapes: their splits, what training never shows, and that a seed decides every byte."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.shapes import HELD_OUT, HeldOut, Options, main
from ldm import UserError
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader
from ldm.shapes.reading import read
from ldm.shapes.scene import COLOURS, SHAPES
from ldm.shapes.sentences import judge, understood


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "set"
    main(Options(out=str(out), count=200))
    return out


def records(root: Path, split: str) -> list[tuple[np.ndarray, dict]]:
    reader = ShardReader(ShardIndex.load(root), split=split)
    return [
        (np.asarray(Image.open(io.BytesIO(reader.image(k)))), reader.record(k)) for k in range(len(reader))
    ]


def test_each_picture_shows_what_its_five_captions_say(root: Path) -> None:
    for split, number in (("train", 184), ("val", 4), ("seen", 4), ("held_out", 4), ("long", 4)):
        found = records(root, split)
        assert len(found) == number
        for picture, record in found:
            assert len(record["texts"]) == len(record["comment_nos"]) == 5
            shown = read(picture).things
            assert all(judge(understood(text), shown).everything for text in record["texts"])


def test_the_seed_decides_every_byte(root: Path, tmp_path: Path) -> None:
    for name, seed in (("same", 0), ("other", 1)):
        main(Options(out=str(tmp_path / name), count=200, seed=seed))
    files = sorted(path.name for path in root.glob("*.tar"))
    assert all((root / file).read_bytes() == (tmp_path / "same" / file).read_bytes() for file in files)
    assert not any((root / file).read_bytes() == (tmp_path / "other" / file).read_bytes() for file in files)


def test_training_never_shows_what_is_held_out(root: Path) -> None:
    held_out = HeldOut.of(0)
    written = json.loads((root / HELD_OUT).read_text())
    assert written["colours"] == [list(pair) for pair in held_out.colours]
    assert {shape for _, shape in held_out.colours} == {*SHAPES}
    assert {colour for colour, _ in held_out.colours} == {*COLOURS}
    looks = {
        (thing["colour"], thing["shape"]) for _, r in records(root, "train") for thing in r["scene"]["things"]
    }
    assert not looks & {*held_out.colours}
    counts = {(g["count"], g["shape"]) for _, r in records(root, "train") for g in r["claim"]["groups"]}
    assert not counts & {*held_out.counts}


def test_long_sentences_are_longer_than_any_in_training(root: Path) -> None:
    lengths = {
        split: [len(text.split()) for _, record in records(root, split) for text in record["texts"]]
        for split in ("train", "long")
    }
    assert min(lengths["long"]) > max(lengths["train"])


def test_another_set_is_not_overwritten(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(Options(out=str(root), count=200))
    assert "is complete already: 200 pictures" in capsys.readouterr().out
    with pytest.raises(DataError, match="another count, size or seed"):
        main(Options(out=str(root), count=200, seed=1))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"count": 0}, "count=0 must be at least 100"),
        ({"size": 32}, "size=32 must lie between 64 and 1024"),
        ({"seed": -1}, "seed"),
    ],
)
def test_absurd_options_are_refused(options: dict, what: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=what):
        main(Options(out=str(tmp_path / "none"), **options))
    assert not (tmp_path / "none").exists()
