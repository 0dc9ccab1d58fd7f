import pytest
import torch
from PIL import Image, ImageFont

from ldm.evaluation.figures import fit_text, running_mean, save_curves, save_png, sheet
from ldm.evaluation.results import Block
from ldm.io.curves import read_curves


def noise(count, side):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def test_a_sheet_holds_every_picture_to_the_pixel_below_its_texts():
    pictures = noise(10, 20)
    blocks = [Block(["x" * 200, "y"], [*pictures[2 * number : 2 * number + 2], None]) for number in range(5)]
    found = sheet(blocks, columns=2)
    assert found.size == (2 * (3 * 26 + 6), 3 * (32 + 26) + 6)
    left, top = 84 + 6 + 26, 58 + 6 + 32  # the second picture of the fourth block
    corner = torch.tensor(list(found.crop((left, top, left + 20, top + 20)).tobytes()), dtype=torch.uint8)
    assert torch.equal(corner.view(20, 20, 3).permute(2, 0, 1), pictures[7])
    empty = found.crop((left + 26, top, left + 46, top + 20))
    assert empty.getcolors() == [(400, (255, 255, 255))]


def test_figures_stay_small(tmp_path):
    image = Image.frombytes("RGB", (150, 150), noise(1, 150).numpy().tobytes())
    path = save_png(image, tmp_path / "noise.png", max_bytes=5_000)
    assert path.stat().st_size <= 5_000
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
