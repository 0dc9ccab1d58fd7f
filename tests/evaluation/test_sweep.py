"""Sweeps: their points, their table and their curves."""

from dataclasses import asdict

import pytest
from PIL import Image

from ldm.evaluate import AXES, points
from ldm.evaluation.figures import curves_of, save_sweep
from ldm.evaluation.results import Row

AXES = [*AXES.values()]


def lines_of(point, rows):
    return [{**point, **asdict(row)} for row in rows]


@pytest.fixture
def lines():
    """A sweep over 3 scales and 2 counts of steps whose numbers are known."""
    found = []
    for point in points({"bundles": None, "samplers": ["ddim"], "num_steps": [5, 10], "scales": [1, 2, 4]}):
        numbers = {"fd_x": point["scale"] * 10 / point["steps"], "own_clip_score": point["scale"] / 10}
        rows = [
            Row(set="train", metric=name, value=value, images=8, nfe=2 * point["steps"])
            for name, value in numbers.items()
        ]
        found += lines_of(point, rows)
    return found


def test_points_are_all_combinations_of_the_axes_that_are_given():
    assert len(points({"num_steps": [1, 2, 3], "scales": [1, 2], "samplers": None})) == 6
    assert points({}) == [{"bundle": None, "ema_length": None, "sampler": None, "steps": None, "scale": None}]
    with pytest.raises(ValueError, match=r"sweep\.scales=2 must be a list"):
        points({"scales": 2})
    with pytest.raises(ValueError, match=r"sweep\.num_steps=\[\] must be a list with a value"):
        points({"num_steps": []})
    with pytest.raises(ValueError, match=r"sweep\.eta is unknown"):
        points({"eta": [1]})


def test_a_curve_of_averages_stands_over_their_length(tmp_path):
    found = []
    for point in points({"ema_lengths": [0.1, 0.05], "scales": [1, 2]}):
        row = Row(set="train", metric="fd_x", value=point["ema_length"] * point["scale"], images=8, nfe=2)
        found += lines_of(point, [row])
    curves = curves_of(found, x="ema_length", y="fd_x", along="ema_length", axes=AXES)
    assert curves == {
        "scale 1": [(0.05, 0.05, "0.05", None), (0.1, 0.1, "0.1", None)],
        "scale 2": [(0.05, 0.1, "0.05", None), (0.1, 0.2, "0.1", None)],
    }
    assert [each.file for each in save_sweep(found, tmp_path, axes=AXES)] == ["train_fd_x_ema_length.png"]


def test_the_score_of_any_clip_makes_a_curve(tmp_path):
    found = []
    for point in points({"scales": [1, 2]}):
        numbers = {"fd_x": 9.0 - point["scale"], "clip_vit_l14_score": 0.1 * point["scale"]}
        rows = [Row(set="train", metric=name, value=value, images=8) for name, value in numbers.items()]
        found += lines_of(point, rows)
    assert [each.file for each in save_sweep(found, tmp_path, axes=AXES)] == [
        "train_fd_x_clip_vit_l14_score.png"
    ]


def test_a_curve_follows_one_axis_and_is_named_by_the_others(lines):
    along_scale = curves_of(lines, x="own_clip_score", y="fd_x", along="scale", axes=AXES)
    assert list(along_scale) == ["ddim, steps 5", "ddim, steps 10"]
    assert along_scale["ddim, steps 5"] == [(0.1, 2, "1", None), (0.2, 4, "2", None), (0.4, 8, "4", None)]
    along_steps = curves_of(lines, x="nfe", y="fd_x", along="steps", axes=AXES)
    assert along_steps["ddim, scale 4"] == [(10, 8, "5", None), (20, 4, "10", None)]


def test_the_figures_are_drawn_as_png_and_svg(lines, tmp_path):
    files = [each.file for each in save_sweep(lines, tmp_path, axes=AXES)]
    assert sorted(files) == ["train_fd_x_nfe.png", "train_fd_x_own_clip_score.png"]
    for name in files:
        Image.open(tmp_path / name).load()
        assert "<svg" in (tmp_path / name).with_suffix(".svg").read_text()
