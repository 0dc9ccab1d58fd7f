"""The sheet of shapes says what each picture shows, and the curves what two sweeps measured."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from experiments.shapes import curves, sheet
from ldm import UserError
from ldm.shapes.scene import Scene, Thing, draw

BLACK = ((10.0, 10.0, 10.0), (0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def picture(*things: Thing) -> torch.Tensor:
    return torch.from_numpy(draw(Scene(things=things, corners=BLACK))).permute(2, 0, 1)


def star(x: float) -> Thing:
    return Thing(shape="star", colour="blue", size="large", x=x, y=0.5)


def test_a_picture_is_put_into_words_and_held_against_its_prompt():
    two = picture(star(0.25), star(0.75))
    assert sheet.reading_of(two, "two blue stars") == ("two large blue stars", True)
    assert sheet.reading_of(two, "a blue star") == ("two large blue stars", False)
    places = [(0.2, 0.3), (0.5, 0.3), (0.8, 0.3), (0.2, 0.7), (0.8, 0.7)]
    five = picture(*(Thing(shape="star", colour="blue", size="small", x=x, y=y) for x, y in places))
    assert sheet.reading_of(five, "four blue stars") == ("5 small blue stars", False)
    nothing = torch.randint(256, (3, 64, 64), dtype=torch.uint8)
    words, is_right = sheet.reading_of(nothing, "a blue star")
    assert words.startswith("unreadable: ")
    assert not is_right


def test_words_fit_under_a_picture():
    font = ImageFont.load_default(sheet.TEXT_SIZE)
    words = "two large orange triangles, a small cyan frame, three small yellow crosses"
    lines = sheet.lines_of(words, font)
    assert 1 < len(lines) <= 3
    assert words.startswith(" ".join(lines))
    assert all(font.getlength(line) <= sheet.SIDE for line in lines)


def test_a_sheet_holds_every_picture():
    pictures = torch.stack([picture(star(0.5))] * sheet.SEEDS * len(sheet.PROMPTS))
    made = np.asarray(sheet.sheet(pictures, [("a large blue star", True)] * len(pictures)))
    blue = (made == np.array([50, 100, 245])).all(axis=-1).sum()
    one = int((pictures[0].permute(1, 2, 0).numpy() == np.array([50, 100, 245])).all(axis=-1).sum())
    assert blue == one * len(pictures) * (sheet.SIDE // 64) ** 2


@pytest.fixture
def sweeps(tmp_path):
    """Two sweeps over two points each, and a run of 0.5 s a step."""
    for name, column, points in (
        ("minutes", "bundle", ["b/step=10", "b/step=30"]),
        ("scales", "scale", [1, 2]),
    ):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "sweep.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["bundle", "scale", "set", "metric", "value"])
            writer.writeheader()
            for point in points:
                for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6)):
                    row = {"set": "seen", "metric": f"composition_everything{end}", "value": value}
                    writer.writerow(row | {column: point})
    (tmp_path / "runs" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "1" / "config.yaml").write_text("batch_size: 32\n")
    (tmp_path / "runs" / "1" / "run.json").write_text('{"inputs": {"ranks": 2}}')
    lines = [{"step": 9, "train/samples_per_second": 128.0}, {"step": 9, "val/loss": 1.0}]
    (tmp_path / "runs" / "1" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return curves.Options(
        minutes=str(tmp_path / "minutes"),
        scales=str(tmp_path / "scales"),
        run=str(tmp_path / "runs"),
        out=str(tmp_path / "curves.png"),
    )


def test_curves_are_drawn_from_the_tables(sweeps):
    curves.main(sweeps)
    assert Image.open(sweeps.out).size[0] > 500
    assert curves.minutes_a_step(curves.Path(sweeps.run)) == 0.5 / 60
    assert curves.step_of("b/step=30") == 30


@pytest.mark.parametrize("missing", ["minutes", "scales", "run"])
def test_what_is_missing_is_named(sweeps, missing):
    setattr(sweeps, missing, "nowhere")
    with pytest.raises(UserError, match="nowhere"):
        curves.main(sweeps)


def test_a_bundle_that_does_not_say_its_step_is_refused():
    with pytest.raises(UserError, match="runs/shapes does not say its step"):
        curves.step_of("runs/shapes")
