"""The comparison of benchmarks/pipeline_vs_diffusers.py at tiny size: both sides draw the same picture."""

import json

import pytest

from benchmarks.pipeline_vs_diffusers import (
    PHASES,
    SHARE,
    SIDES,
    Drawing,
    closeness,
    draw,
    rounds,
    table,
)
from benchmarks.problem_sizes import TOY
from benchmarks.random_pipeline import make_pipeline


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    """What is drawn, and a row of each side."""
    folder = tmp_path_factory.mktemp("pipelines")
    drawing = Drawing(folder=folder, shape="toy", size=32, steps=3, precision="float32")
    make_pipeline(folder, TOY)
    return drawing, [draw(side, drawing) | {"seconds": 100.0} for side in SIDES]


def test_both_sides_draw_the_same_picture(drawings):
    drawing, _ = drawings
    apart = closeness(drawing)
    assert apart["share within 1"] >= SHARE
    assert apart["spread"] > 10  # levels of 255: a picture that tells one network from another


def test_the_phases_of_a_drawing_are_all_of_its_time(drawings):
    _, rows = drawings
    for row in rows:
        assert all(row[phase] >= 0 for phase in PHASES[:-1])
    lines = table(rows).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [*PHASES, "seconds", "memory"]
    assert lines[-2].split()[-1] == "1.00"


def test_drawings_that_are_there_are_not_made_again(drawings):
    drawing, rows = drawings
    about = {"shape": "toy", "size": 32, "steps": 3, "precision": "float32"}
    file = drawing.folder / "drawings.jsonl"
    file.write_text("".join(f"{json.dumps(row | about)}\n" for row in rows))
    assert rounds(drawing, count=1) == [row | about for row in rows]
