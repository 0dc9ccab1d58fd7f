"""Figures of a report: generated pictures beside real ones, curves of a training, curves of a sweep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm import UserError
from ldm.evaluation.result_types import Pair, Shown
from ldm.evaluation.sweep import AXES
from ldm.io.pictures import encode_png, save_figure, to_picture
from ldm.io.writing import write

MAX_BYTES = 400_000  # of one figure: reports are committed
MARGIN, TEXT_HEIGHT, TEXT_SIZE = 6, 16, 11
INK, PAPER = (30, 30, 30), (255, 255, 255)
LITERATURE = "literature/"  # what others printed, as `literature/<result>/<system>`
DISTANCES = ("fid", "fd_")  # beginnings of results' names

Curves = Mapping[str, Sequence[tuple[int, float]]]  # name -> (step, value), ...


class Place(NamedTuple):
    """A point of a curve, labelled with its value on the axis that the curve follows."""

    x: float
    y: float
    label: str


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
        canvas.paste(to_picture(picture), (x, y + band))
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
            if picture is not None:
                canvas.paste(to_picture(picture), (x, y + TEXT_HEIGHT))
    return canvas


def pair_sheet(pairs: Sequence[Pair], *, columns: int = 2) -> Image.Image:
    """Pairs row by row: the generated picture, the real one nearest to it; above them prompt and distance."""
    size = pairs[0].generated.shape[-1]
    width, height = 2 * size + 3 * MARGIN, size + 2 * TEXT_HEIGHT + MARGIN
    columns = min(columns, len(pairs))
    canvas = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for number, pair in enumerate(pairs):
        x, y = MARGIN + number % columns * width, MARGIN + number // columns * height
        for line, words in enumerate((pair.prompt, f"generated | {pair.split}, at {pair.distance:.3f}")):
            text = fit_text(words, width - 2 * MARGIN, font)
            draw.text((x, y + line * TEXT_HEIGHT), text, fill=INK, font=font)
        for place, picture in enumerate((pair.generated, pair.real)):
            canvas.paste(to_picture(picture), (x + place * (size + MARGIN), y + 2 * TEXT_HEIGHT))
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
    data = encode_png(image, optimize=True)
    if len(data) > max_bytes:
        data = encode_png(image.quantize(256), optimize=True)
    while len(data) > max_bytes and min(image.size) > 1:
        image = image.resize(
            (max(1, image.width * 4 // 5), max(1, image.height * 4 // 5)), Image.Resampling.LANCZOS
        )
        data = encode_png(image.quantize(256), optimize=True)
    return write(path, data)


def save_curves(curves: Curves, path: Path, *, title: str) -> Path:
    """One panel a name, smoothed by a running mean where there are many points.

    Numbers of the literature are straight lines in the panel of `val/<result>`.

    Raises:
        UserError: there is no curve.
    """
    from matplotlib.figure import Figure  # half a second that only figures need

    names = sorted(name for name in curves if not name.startswith(LITERATURE))
    if not names:
        raise UserError("there are no curves to draw: metrics.jsonl is empty")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        steps, values = zip(*curves[name], strict=True)
        many = len(steps) > 100
        panel.plot(
            steps, values, linewidth=0.6 if many else 1.4, alpha=0.35 if many else 1.0, color="tab:blue"
        )
        if many:
            panel.plot(steps, running_mean(values, window=len(values) // 25), color="tab:blue")
        for system, number in literature_beside(curves, name).items():
            panel.axhline(number, linestyle=":", linewidth=0.8, color="tab:gray")
            panel.annotate(system, (steps[0], number), fontsize=6, color="tab:gray", va="bottom")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path, dpi=90)


def literature_beside(curves: Curves, name: str) -> dict[str, float]:
    """The numbers of the literature for a curve named `val/<result>`, by system."""
    head = f"{LITERATURE}{name.removeprefix('val/')}/"
    found = {each.removeprefix(head): curves[each] for each in curves if each.startswith(head)}
    return {system: points[-1][1] for system, points in found.items()}


def running_mean(values: Sequence[float], *, window: int) -> list[float]:
    """Mean of the last `window` values at each place."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def draw_sweep(lines: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, str]:
    """Distance against CLIP score, evaluations and length of the average, for each set.

    A curve follows the scale, the steps or the length; the other axes name it.

    Returns the names of the PNG files by title; each has an SVG beside it. A figure is left out where the
    sweep doesn't hold what it needs.
    """
    files = {}
    for set_name in dict.fromkeys(line["set"] for line in lines):
        mine = [line for line in lines if line["set"] == set_name]
        distance = _first(mine, lambda name: name.startswith(DISTANCES))
        score = _first(mine, lambda name: "clip" in name and name.endswith("_score"))
        for x, along in ((score, "scale"), ("nfe", "steps"), ("ema_length", "ema_length")):
            if distance is not None and x is not None:
                found = curves_of(mine, x=x, y=distance, along=along)
                if any(len(places) > 1 for places in found.values()):
                    title = f"{set_name}: {distance} against {x}"
                    name = f"{set_name}_{distance}_{x}"
                    files[title] = save_curves_of(found, folder / name, title=title, x=x, y=distance)
    return files


def curves_of(lines: Sequence[Mapping[str, Any]], *, x: str, y: str, along: str) -> dict[str, list[Place]]:
    """Curves of one set by name, each in the order of what it follows.

    Args:
        lines: of the sweep's table, of one set.
        x, y: metrics; for x also "nfe" and "ema_length".
        along: the axis that each curve follows; the others name it.
    """
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    for line in lines:
        point = values.setdefault(tuple(line[axis] for axis in AXES), {})
        point[line["metric"]] = line["value"]
        point |= {name: line[name] for name in ("nfe", "ema_length") if line[name] is not None}
    found: dict[str, list[Place]] = {}
    number = AXES.index(along)
    for key in sorted(values, key=lambda key: (key[number] is not None, key[number])):
        numbers, point = values[key], dict(zip(AXES, key, strict=True))
        if x in numbers and y in numbers:
            label = "" if point[along] is None else f"{point[along]:g}"
            found.setdefault(_name(point, along), []).append(Place(numbers[x], numbers[y], label))
    return found


def save_curves_of(curves: Mapping[str, Sequence[Place]], stem: Path, *, title: str, x: str, y: str) -> str:
    """Writes `<stem>.png` and `<stem>.svg`; returns the first one's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    panel = figure.subplots()
    for name, places in curves.items():
        panel.plot([place.x for place in places], [place.y for place in places], marker="o", label=name)
        for place in places:
            panel.annotate(
                place.label, (place.x, place.y), textcoords="offset points", xytext=(4, 4), fontsize=7
            )
    panel.set(title=title, xlabel=x, ylabel=f"{y}, lower is better")
    panel.grid(alpha=0.3)
    if any(curves):
        panel.legend(fontsize=7)
    for ending in ("png", "svg"):
        save_figure(figure, stem.with_name(f"{stem.name}.{ending}"), dpi=110)
    return f"{stem.name}.png"


def _first(lines: Sequence[Mapping[str, Any]], fits: Any) -> str | None:
    return next((line["metric"] for line in lines if fits(line["metric"])), None)


def _name(point: Mapping[str, Any], along: str) -> str:
    """What the other axes have, as `ddim, scale 2`."""
    parts = (
        str(value) if axis in ("bundle", "sampler") else f"{axis} {value:g}"
        for axis, value in point.items()
        if axis != along and value is not None
    )
    return ", ".join(parts)
