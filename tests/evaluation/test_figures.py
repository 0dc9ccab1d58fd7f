import torch
from PIL import Image, ImageFont

from ldm.evaluation.figures import comparison, fit_text, picture_grid, save_png
from ldm.evaluation.rows import Shown


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
