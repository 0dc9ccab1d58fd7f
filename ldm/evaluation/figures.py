"""Figures of a report: generated pictures beside real ones, curves of a training, curves of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm import UserError
from ldm.checkpoints.provenance import published
from ldm.evaluation.report import Figure, memorisation_sentence
from ldm.evaluation.results import Block, SetResult, spreads
from ldm.io.curves import read_curves
from ldm.io.pictures import encode_png, save_figure, to_picture
from ldm.io.writing import write

MAX_BYTES = 400_000  # of one figure: reports are committed
MARGIN, TEXT_HEIGHT, TEXT_SIZE = 6, 16, 11  # pixels
INK, PAPER = (30, 30, 30), (255, 255, 255)
LITERATURE = "literature/"  # what others printed, as `literature/<result>/<system>`
DISTANCES = ("fid", "fd_")  # beginnings of results' names

Curves = Mapping[str, Sequence[tuple[int, float]]]  # name -> (step, value), ...
Line = Mapping[str, Any]  # of a sweep's table: the point, one number, its references


class Place(NamedTuple):
    """A point of a curve, labelled with its value on the axis that the curve follows."""

    x: float
    y: float
    label: str
    spread: float | None = None  # of y: its widest error bar


def save_figures(folder: Path, sets: Iterable[SetResult], *, curves: Path | None = None) -> list[Figure]:
    """Writes the figures of a report; `curves` is a run's `metrics.jsonl`, which may be missing."""
    figures = []
    for each in sets:
        if each.shown:
            file = save_png(sheet(each.shown), folder / f"{each.name}.png")
            figures.append(Figure(f"{each.name}: generated, nearest real, right one", file.name))
        if each.pairs:
            file = save_png(sheet(each.pairs), folder / f"{each.name}_memorisation.png")
            title = f"{each.name}: the generated pictures nearest to real ones"
            figures.append(Figure(title, file.name, memorisation_sentence(each.record["closest"])))
    if curves is not None and (found := read_curves(curves)):
        file = save_curves(found, folder / "curves.png", title=str(curves.parent))
        figures.append(Figure("training", file.name))
    return figures


def sheet(blocks: Sequence[Block], *, columns: int = 2) -> Image.Image:
    """Blocks row by row, each text cut to the width of the pictures below it."""
    texts, (first, *others) = blocks[0]
    size, band, columns = first.shape[-1], len(texts) * TEXT_HEIGHT, min(columns, len(blocks))
    width, height = (1 + len(others)) * (size + MARGIN) + MARGIN, band + size + MARGIN
    canvas = Image.new("RGB", (columns * width, -(-len(blocks) // columns) * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for number, block in enumerate(blocks):
        x, y = MARGIN + number % columns * width, MARGIN + number // columns * height
        for line, text in enumerate(block.texts):
            place = (x, y + line * TEXT_HEIGHT)
            draw.text(place, fit_text(text, width - 2 * MARGIN, font), fill=INK, font=font)
        for column, picture in enumerate(block.pictures):
            if picture is not None:
                canvas.paste(to_picture(picture), (x + column * (size + MARGIN), y + band))
    return canvas


def fit_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    kept = text = " ".join(text.split())
    while kept and font.getlength(text) > width:
        kept = kept[:-1]
        text = f"{kept}..."
    return text


def save_png(image: Image.Image, path: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Saves as PNG below a size: first as it is, then with 256 colours, then smaller and smaller."""
    data = encode_png(image, optimize=True)
    while len(data) > max_bytes and min(image.size) > 1:
        data = encode_png(image.quantize(256), optimize=True)
        width, height = (max(1, side * 4 // 5) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return write(path, data)


def save_curves(curves: Curves, path: Path, *, title: str) -> Path:
    """One panel per name, smoothed by a running mean where there are many points.

    Numbers of the literature are straight lines in the panel of `val/<result>`. Raises UserError: no curve.
    """
    from matplotlib.figure import Figure as Drawing  # half a second that only figures need

    if not (names := sorted(name for name in curves if not name.startswith(LITERATURE))):
        raise UserError("there are no curves to draw: metrics.jsonl is empty")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    width, height = 4 * columns, 2.6 * rows + 0.4  # inches
    drawing = Drawing(figsize=(width, height))
    axes = drawing.subplots(rows, columns, squeeze=False)
    # margins by hand: a layout that measures every label takes a third of the time that a figure takes
    edges = {"left": 0.6 / width, "right": 1 - 0.2 / width, "bottom": 0.3 / height, "top": 1 - 0.7 / height}
    drawing.subplots_adjust(**edges, wspace=0.25, hspace=0.35)
    for panel, name in zip(axes.flat, names, strict=False):
        steps, values = zip(*curves[name], strict=True)
        many = len(steps) > 100
        width, alpha = (0.6, 0.35) if many else (1.4, 1.0)
        panel.plot(steps, values, linewidth=width, alpha=alpha, color="tab:blue")
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
    drawing.suptitle(published(title), fontsize=10)
    return save_figure(drawing, path, dpi=90)


def literature_beside(curves: Curves, name: str) -> dict[str, float]:
    """The numbers of the literature for a curve named `val/<result>`, by system."""
    head = f"{LITERATURE}{name.removeprefix('val/')}/"
    found = {each.removeprefix(head): curves[each] for each in curves if each.startswith(head)}
    return {system: points[-1][1] for system, points in found.items()}


def running_mean(values: Sequence[float], *, window: int) -> list[float]:
    """Mean of the last `window` values at each place."""
    sums, ends = np.cumsum([0.0, *values]), np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()


def save_sweep(lines: Sequence[Line], folder: Path, *, axes: Sequence[str]) -> list[Figure]:
    """Distance against CLIP score, NFE and EMA length, for each set, as PNG and SVG.

    A curve follows the scale, the steps or the length; the other axes name it. A figure is left out where the
    sweep doesn't hold what it needs.
    """
    figures = []
    for set_name in dict.fromkeys(line["set"] for line in lines):
        mine = [line for line in lines if line["set"] == set_name]
        metrics = [line["metric"] for line in mine]
        distance = next((name for name in metrics if name.startswith(DISTANCES)), None)
        score = next((name for name in metrics if "clip" in name and name.endswith("_score")), None)
        for x, along in ((score, "scale"), ("nfe", "steps"), ("ema_length", "ema_length")):
            if distance is not None and x is not None:
                found = curves_of(mine, x=x, y=distance, along=along, axes=axes)
                if any(len(places) > 1 for places in found.values()):
                    title, stem = f"{set_name}: {distance} against {x}", folder / f"{set_name}_{distance}_{x}"
                    file = save_curves_of(found, stem, title=title, x=x, y=distance)
                    figures.append(Figure(title, file))
    return figures


def curves_of(
    lines: Sequence[Line], *, x: str, y: str, along: str, axes: Sequence[str]
) -> dict[str, list[Place]]:
    """Curves of one set of a sweep by name, each in the order of the axis `along`; the other axes name it.

    x and y are metrics; x also "nfe" and "ema_length".
    """
    values: dict[tuple[Any, ...], dict[str, float]] = {}
    bars: dict[tuple[Any, ...], float | None] = {}
    for line in lines:
        point = values.setdefault(tuple(line[axis] for axis in axes), {})
        point[line["metric"]] = line["value"]
        if line["metric"] == y:
            bars[tuple(line[axis] for axis in axes)] = next((widest for widest, _ in spreads(line)), None)
        point |= {name: line[name] for name in ("nfe", "ema_length") if line[name] is not None}
    found: dict[str, list[Place]] = {}
    number = axes.index(along)
    for key in sorted(values, key=lambda key: (key[number] is not None, key[number])):
        numbers, point = values[key], dict(zip(axes, key, strict=True))
        if x in numbers and y in numbers:
            label = "" if point[along] is None else f"{point[along]:g}"
            others = {axis: each for axis, each in point.items() if axis != along and each is not None}
            name = ", ".join(
                each if isinstance(each, str) else f"{axis} {each:g}" for axis, each in others.items()
            )
            found.setdefault(name, []).append(Place(numbers[x], numbers[y], label, bars[key]))
    return found


def save_curves_of(curves: Mapping[str, Sequence[Place]], stem: Path, *, title: str, x: str, y: str) -> str:
    """Writes `<stem>.png` and `<stem>.svg`; returns the first one's name."""
    from matplotlib.figure import Figure as Drawing

    drawing = Drawing(figsize=(6, 4), layout="constrained")
    panel = drawing.subplots()
    for name, places in curves.items():
        bars = [place.spread or 0.0 for place in places]
        panel.errorbar(
            [place.x for place in places], [place.y for place in places], bars, fmt="o-", label=name
        )
        for *at, label, _ in places:
            panel.annotate(label, at, textcoords="offset points", xytext=(4, 4), fontsize=7)
    panel.set(title=title, xlabel=x, ylabel=f"{y}, lower is better")
    panel.grid(alpha=0.3)
    if any(curves):
        panel.legend(fontsize=7)
    for ending in ("png", "svg"):
        save_figure(drawing, stem.with_name(f"{stem.name}.{ending}"), dpi=110)
    return f"{stem.name}.png"
