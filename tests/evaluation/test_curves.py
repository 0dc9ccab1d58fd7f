"""Facts about the curves of a training."""

import pytest
from PIL import Image

from ldm.evaluation.curves import read_curves, running_mean, save_curves


def test_curves_leave_out_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 3}\n{"step": 5, "loss": 2, "val/psnr": 20.5}\n{"step": 9, "lo')
    assert read_curves(path) == {"loss": [(0, 3.0), (5, 2.0)], "val/psnr": [(5, 20.5)]}


def test_running_mean_looks_back():
    assert running_mean([1.0, 2, 3, 4], window=2) == [1, 1.5, 2.5, 3.5]


def test_curves_are_drawn_and_none_is_refused(tmp_path):
    curves = {"loss": [(step, 1 / (step + 1)) for step in range(300)], "val/psnr": [(0, 20.0), (300, 25.0)]}
    with Image.open(save_curves(curves, tmp_path / "curves.png", title="run")) as image:
        assert image.width > 300
    with pytest.raises(ValueError, match="no curves"):
        save_curves({}, tmp_path / "none.png", title="run")
