"""The onset of copying: nested training sets, pieces that are kept, and a page of what was found."""

import json

import pytest

from experiments.onset.__main__ import NUMBERS, Options, main, prepare, read_counts, training_order
from ldm import UserError
from ldm.data.shards import PictureDataset


def piece(count, copied):
    numbers = {name: {"value": copied, "sd": 0.01, "floor": 0.02} for name in NUMBERS}
    about = {"commit": "0123456789abcdef", "dirty": False, "config_hash": "f" * 64, "protocol": "e" * 64}
    losses = {"200": 0.9, "400": 0.7, "800": 0.8}
    return {
        **numbers, **about, "pictures": count, "generated": 184, "seeds": 3, "val/loss_fixed": losses,
        "commands": ["python -m ldm.train", "python -m ldm.evaluate"], "cpu_seconds": 61.4,
    }  # fmt: skip


def test_each_set_is_a_part_of_the_next_and_none_has_a_held_out_picture(tmp_path):
    for count in (3, 5):
        prepare(tmp_path / str(count), count)
    small, large = (PictureDataset(str(tmp_path / str(count)), split="train", size=64) for count in (3, 5))
    assert {*small.keys()} < {*large.keys()}
    held_out = PictureDataset(str(tmp_path / "3"), split="val", size=64)
    assert (len(small), len(large), len(held_out)) == (3, 5, 164)
    assert not {*training_order()} & {*held_out.keys()}


def test_what_is_recorded_is_not_computed_again_and_becomes_a_page(tmp_path):
    work, out = tmp_path / "work", tmp_path / "out"
    work.mkdir()
    for count, copied in ((184, 0.6), (368, 0.25)):
        (work / f"{count}.json").write_text(json.dumps(piece(count, copied)))
    main(Options(counts="368,184", work=str(work), out=str(out)))
    text = (out / "README.md").read_text()
    assert "| 184 | 0.600 ± 0.010 | 0.600 | 0.600 | 0.020 | 0.800 | 0.700, 400 | 61 |" in text
    assert text.index("| 184 |") < text.index("| 368 |")
    assert (out / "figure.png").stat().st_size > 1000
    assert [each["pictures"] for each in json.loads((out / "onset.json").read_text())] == [184, 368]


@pytest.mark.parametrize("counts", ["", "12", "184,many", "1473", "184,,368"])
def test_sizes_that_no_set_has_are_refused(counts):
    with pytest.raises(UserError, match=f"counts={counts} must be whole numbers from 184 to 1472"):
        read_counts(counts)
