"""Curves of a training, from its `metrics.jsonl` to a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ldm.checkpoints.log_lines import read_lines
from ldm.checkpoints.pictures import save_figure

Curves = Mapping[str, Sequence[tuple[int, float]]]  # name -> (step, value), ...
LITERATURE = "literature/"  # what others printed, as `literature/<result>/<system>`


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a `metrics.jsonl` by name; damaged lines are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(path)[0]:
        for name, value in line.values.items():
            curves.setdefault(name, []).append((line.step, value))
    return curves


def save_curves(curves: Curves, path: Path, *, title: str) -> Path:
    """One panel a name, smoothed by a running mean where there are many points.

    Numbers of the literature are straight lines in the panel of `val/<result>`.

    Raises:
        ValueError: there is no curve.
    """
    import matplotlib  # half a second that only this function needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = sorted(name for name in curves if not name.startswith(LITERATURE))
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
        for system, number in beside(curves, name).items():
            panel.axhline(number, linestyle=":", linewidth=0.8, color="tab:gray")
            panel.annotate(system, (steps[0], number), fontsize=6, color="tab:gray", va="bottom")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in axes.flat[len(names) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=90)
    pyplot.close(figure)
    return path


def beside(curves: Curves, name: str) -> dict[str, float]:
    """The numbers of the literature for a curve named `val/<result>`, by system."""
    head = f"{LITERATURE}{name.removeprefix('val/')}/"
    found = {each.removeprefix(head): curves[each] for each in curves if each.startswith(head)}
    return {system: points[-1][1] for system, points in found.items()}


def running_mean(values: Sequence[float], *, window: int) -> list[float]:
    """Mean of the last `window` values at each place."""
    sums = torch.tensor([0.0, *values], dtype=torch.float64).cumsum(0)
    ends = torch.arange(1, len(values) + 1)
    starts = (ends - window).clamp(min=0)
    return ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
