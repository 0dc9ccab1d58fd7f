"""The figure of a sweep: one panel a number, what was varied along the x axis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.io.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3  # panels side by side
TICKS = 8  # values that are written below an axis; of more the axis chooses some
LOGARITHMIC = 20  # ratio of the largest to the smallest value from which an axis is logarithmic

Swept = tuple[Mapping[str, str], Mapping[str, float]]  # value by key, and number by name


def draw_sweep(title: str, points: Sequence[Swept], names: Sequence[str], path: Path) -> Path:
    """Draws numbers against the key with the most values; the other keys name the lines.

    A number that a point doesn't have is left out.

    Args:
        points: in their order on the lines.
        names: of the numbers, one panel each.
    """
    along = axis_of(points)
    columns = min(COLUMNS, len(names))
    lines = -(-len(names) // columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns, 2.7 * lines + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for panel, name in zip(axes.flat, names, strict=False):
        _draw_panel(panel, name, points, along)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path, dpi=90)


def axis_of(points: Sequence[Swept]) -> str:
    """The key of the x axis: numbers before words, then the one with the most values."""
    keys = dict.fromkeys(key for swept, _ in points for key in swept)
    found = {key: {swept[key] for swept, _ in points if key in swept} for key in keys}
    return max(found, key=lambda key: (all(map(is_number, found[key])), len(found[key])), default="")


def is_number(text: str) -> bool:
    """Whether Python reads a text as a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _draw_panel(panel: "Axes", name: str, points: Sequence[Swept], along: str) -> None:
    shown = [(swept, numbers[name]) for swept, numbers in points if name in numbers]
    places = [swept.get(along, "") for swept, _ in shown]
    numeric = all(map(is_number, places))
    words = list(dict.fromkeys(places))
    lines: dict[str, list[tuple[float, float]]] = {}
    for (swept, value), place in zip(shown, places, strict=True):
        label = ", ".join(f"{key.lstrip('+')}={each}" for key, each in swept.items() if key != along)
        lines.setdefault(label, []).append((float(place) if numeric else words.index(place), value))
    for label, line in lines.items():
        panel.plot(*zip(*sorted(line), strict=True), "o-" if numeric else "o", label=label, markersize=4)
    xs = [x for line in lines.values() for x, _ in line]
    if numeric and min(xs) > 0 and max(xs) / min(xs) >= LOGARITHMIC:
        panel.set_xscale("log")
        from matplotlib.ticker import NullFormatter

        panel.xaxis.set_minor_formatter(NullFormatter())
    ticks = sorted(set(xs))
    if len(ticks) <= TICKS:
        labels = [f"{tick:g}" for tick in ticks] if numeric else [words[round(tick)] for tick in ticks]
        panel.set_xticks(ticks, labels, rotation=30)
    panel.set_title(name, fontsize=9)
    panel.set_xlabel(along.lstrip("+"), fontsize=8)
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.3)
