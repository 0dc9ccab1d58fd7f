"""Curves of a sweep: what a distance costs in network evaluations, and in agreement with the text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ldm.checkpoints.pictures import save_figure
from ldm.evaluation.sweep import AXES

DISTANCES = ("fid", "fd_")  # beginnings of results' names


class Place(NamedTuple):
    """A point of a curve, labelled with its value on the axis that the curve follows."""

    x: float
    y: float
    label: str


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
    import matplotlib  # half a second that only this function needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(6, 4), layout="constrained")
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
    pyplot.close(figure)
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
