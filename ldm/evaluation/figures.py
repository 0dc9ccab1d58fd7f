"""Pictures of a report: what was generated beside the real ones, and the curves of a training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.evaluation.measure import Shown

MAX_BYTES = 400_000  # of one figure: reports are committed
MARGIN, TEXT_HEIGHT, TEXT_SIZE = 6, 16, 11
INK, PAPER = (30, 30, 30), (255, 255, 255)

Curves = Mapping[str, Sequence[tuple[int, float]]]  # name -> (step, value), ...


def to_image(picture: UInt8[Tensor, "3 h w"]) -> Image.Image:
    return Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())


def picture_grid(
    pictures: UInt8[Tensor, "n 3 h w"], *, columns: int, titles: Sequence[str] = ()
) -> Image.Image:
    """Pictures row by row, each under its title if there are titles."""
    height, width = pictures.shape[-2:]
    band = TEXT_HEIGHT if titles else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step_x, step_y = width + MARGIN, height + band + MARGIN
    canvas = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for number, picture in enumerate(pictures):
        x, y = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        if titles:
            draw.text((x, y), fit_text(titles[number], width, font), fill=INK, font=font)
        canvas.paste(to_image(picture), (x, y + band))
    return canvas


def comparison(shown: Sequence[Shown]) -> Image.Image:
    """One line a caption: its generated pictures, the real picture nearest to the first, the right one."""
    samples = len(shown[0].generated)
    size = shown[0].generated.shape[-1]
    step_x, step_y = size + MARGIN, size + TEXT_HEIGHT + MARGIN
    gap = 2 * MARGIN  # between what was made and what is real
    width = (samples + 2) * step_x + MARGIN + gap
    font = ImageFont.load_default(TEXT_SIZE)
    names = ["generated", *[""] * (samples - 1), "nearest" if samples == 1 else "near 1st", "right"]
    lefts = [MARGIN + column * step_x + (gap if column >= samples else 0) for column in range(samples + 2)]
    canvas = Image.new("RGB", (width, len(shown) * step_y + TEXT_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for name, x in zip(names, lefts, strict=True):
        draw.text((x, 2), name, fill=INK, font=font)
    for line, one in enumerate(shown):
        y = TEXT_HEIGHT + line * step_y
        draw.text((MARGIN, y), fit_text(one.prompt, width - 2 * MARGIN, font), fill=INK, font=font)
        for picture, x in zip([*one.generated, one.nearest, one.right], lefts, strict=True):
            canvas.paste(to_image(picture), (x, y + TEXT_HEIGHT))
    return canvas


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side, tops aligned."""
    width, height = sum(image.width for image in images), max(image.height for image in images)
    canvas = Image.new("RGB", (width, height), PAPER)
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def fit_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def save_png(image: Image.Image, path: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Saves as PNG below a size: first as it is, then with 256 colours, then smaller and smaller."""
    image.save(path, optimize=True)
    if path.stat().st_size > max_bytes:
        image.quantize(256).save(path, optimize=True)
    while path.stat().st_size > max_bytes and min(image.size) > 1:
        image = image.resize(
            (max(1, image.width * 4 // 5), max(1, image.height * 4 // 5)), Image.Resampling.LANCZOS
        )
        image.quantize(256).save(path, optimize=True)
    return path


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a `metrics.jsonl` by name; a line torn by a killed run is left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            step = int(record.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in record.items():
            curves.setdefault(name, []).append((step, float(value)))
    return curves


def save_curves(curves: Curves, path: Path, *, title: str) -> Path:
    """One panel a name, smoothed by a running mean where there are many points.

    Raises:
        ValueError: there is no curve.
    """
    import matplotlib  # half a second that only this function needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(curves)
    if not names:
        raise ValueError("there are no curves to draw: metrics.jsonl is empty")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4 * columns, 2.6 * rows), squeeze=False, layout="constrained"
    )
    for panel, name in zip(axes.flat, names, strict=False):
        steps, values = zip(*curves[name], strict=True)
        many = len(steps) > 100
        panel.plot(
            steps, values, linewidth=0.6 if many else 1.4, alpha=0.35 if many else 1.0, color="tab:blue"
        )
        if many:
            panel.plot(steps, running_mean(values, window=len(values) // 25), color="tab:blue")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
    return path


def running_mean(values: Sequence[float], *, window: int) -> list[float]:
    """Mean of the last `window` values at each place."""
    sums = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - window).clamp(min=0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
