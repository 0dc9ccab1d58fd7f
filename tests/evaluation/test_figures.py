import pytest
import torch
from PIL import Image, ImageFont

from ldm.evaluation.figures import comparison, fit_text, picture_grid, running_mean, save_curves, save_png
from ldm.evaluation.result_types import Shown
from ldm.io.curves import read_curves


def noise(count, side):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_grid_holds_every_picture_to_the_pixel():
    pictures = noise(5, 20)
    grid = picture_grid(pictures, columns=3)
    assert grid.size == (3 * 26 + 6, 2 * 26 + 6)
    corner = torch.tensor(list(grid.crop((6 + 26, 6 + 26, 6 + 46, 6 + 46)).tobytes()), dtype=torch.uint8)
    assert torch.equal(corner.view(20, 20, 3).permute(2, 0, 1), pictures[4])


def test_comparison_shows_generated_then_nearest_then_right():
    pictures = noise(4, 16)
    image = comparison(
        [Shown(prompt="x" * 200, generated=pictures[:2], nearest=pictures[2], right=pictures[3])]
    )
    right = torch.tensor(
        list(image.crop((image.width - 22, 32, image.width - 6, 48)).tobytes()), dtype=torch.uint8
    )
    assert torch.equal(right.view(16, 16, 3).permute(2, 0, 1), pictures[3])


def test_figures_stay_small(tmp_path):
    image = Image.frombytes("RGB", (900, 900), noise(1, 900).numpy().tobytes())
    path = save_png(image, tmp_path / "noise.png", max_bytes=100_000)
    assert path.stat().st_size <= 100_000
    Image.open(path).load()


def test_long_text_ends_with_an_ellipsis_and_fits():
    font = ImageFont.load_default(11)
    assert fit_text("short", 100, font) == "short"
    cut = fit_text("a very long caption " * 20, 100, font)
    assert cut.endswith("...")
    assert font.getlength(cut) <= 100


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
