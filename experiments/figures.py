"""Figures of the index: runs of one protocol beside their references, and the literature as printed."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import UserError
from ldm.evaluation.published import COCO, PublishedRow
from ldm.evaluation.results import spreads
from ldm.io.pictures import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 4  # panels side by side
INK = "tab:blue"
REFERENCES = {"real": ("tab:orange", 5), "floor": ("tab:gray", 2), "ceiling": ("tab:green", 2)}  # and width
REGIMES = {True: "zero-shot", False: "trained on COCO", None: "not known"}


def draw_measured(title: str, runs: Mapping[str, Mapping[str, Any]], path: Path) -> Path | None:
    """One panel for each number with a reference: a dot a run, its references as strokes.

    Numbers of which neither more nor less is better, such as the bounds of an interval, have no panel.

    Args:
        runs: results document by experiment, all of one protocol.

    Returns:
        The picture's path, or None where there is no such number.
    """
    panels: dict[str, dict[str, Mapping[str, Any]]] = {}
    for run, document in runs.items():
        for row in document["rows"]:
            has_direction = row.get("higher_is_better", True) is not None  # absent in earlier results
            if has_direction and any(row.get(name) is not None for name in REFERENCES):
                panels.setdefault(f"{row['set']}/{row['metric']}", {})[run] = row
    if not panels:
        return None
    lines = -(-len(panels) // COLUMNS)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * COLUMNS, 2.4 * lines + 0.6), layout="constrained")
    axes = figure.subplots(lines, COLUMNS, squeeze=False)
    for panel, (metric, rows) in zip(axes.flat, sorted(panels.items()), strict=False):
        _draw_panel(panel, metric, rows)
    for panel in axes.flat[len(panels) :]:
        panel.set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(*_strokes(axes.flat), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return save_figure(figure, path, dpi=90)


def draw_literature(rows: Sequence[PublishedRow], path: Path) -> Path:
    """FID on MS-COCO as printed, one block a regime, systems in the order of the rows.

    A dot is filled where the number was verified.

    Raises UserError where no row has such a number.
    """
    shown = [row for row in rows if row.dataset == COCO and "fid" in row.values]
    if not shown:
        raise UserError(f"no published row has a FID on {COCO}: there is nothing to draw")
    blocks = {regime: [row for row in shown if row.zero_shot is regime] for regime in REGIMES}
    blocks = {regime: block for regime, block in blocks.items() if block}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.27 * len(shown) + 0.5 * len(blocks) + 1), layout="constrained")
    heights = [len(block) + 1 for block in blocks.values()]
    axes = figure.subplots(len(blocks), 1, squeeze=False, sharex=True, height_ratios=heights)
    for panel, (regime, block) in zip(axes.flat, blocks.items(), strict=True):
        _draw_block(panel, REGIMES[regime], block)
    axes.flat[-1].set_xlim(0, 1.2 * max(row.values["fid"].value for row in shown))  # room for the words
    axes.flat[-1].set_xlabel(f"FID on {COCO} as printed", fontsize=8)
    figure.suptitle("Each dot has a protocol of its own; hollow: not verified", fontsize=9)
    return save_figure(figure, path, dpi=90)


def _draw_panel(panel: "Axes", metric: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    for place, row in enumerate(rows.values()):
        ends = place - 0.35, place + 0.35
        for name, (colour, width) in REFERENCES.items():
            if row.get(name) is not None:
                panel.hlines(row[name], *ends, colors=colour, linewidth=width, label=name)
        spread = next((widest for widest, _ in spreads(row)), None)
        panel.errorbar(place, row["value"], yerr=spread, fmt="o", color=INK, label="run")
    panel.set_title(metric, fontsize=8)
    panel.set_xticks(range(len(rows)), list(rows), fontsize=7, rotation=0 if len(rows) < 4 else 30)
    panel.set_xlim(-0.6, len(rows) - 0.4)
    panel.update_datalim([(0, 0)])  # from zero, so that heights can be compared
    panel.margins(y=0.08)
    panel.tick_params(axis="y", labelsize=7)
    panel.grid(axis="y", alpha=0.3)


def _strokes(axes: "Iterator[Axes]") -> tuple[list[Any], list[str]]:
    """One handle a label, from all panels."""
    found: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    names = [name for name in ("run", *REFERENCES) if name in found]
    return [found[name] for name in names], names


def _draw_block(panel: "Axes", regime: str, rows: Sequence[PublishedRow]) -> None:
    for place, row in enumerate(rows):
        value = row.values["fid"].value
        face = INK if row.verified("fid") else "white"
        panel.plot(value, place, "o", color=INK, markerfacecolor=face, markersize=5)
        panel.annotate(
            _terms(row), (value, place), xytext=(7, 0), textcoords="offset points", fontsize=7, va="center"
        )
    panel.set_yticks(range(len(rows)), [row.system for row in rows], fontsize=8)
    panel.set_ylim(len(rows) - 0.4, -0.6)
    panel.set_title(regime, fontsize=8, loc="left")
    panel.tick_params(axis="x", labelsize=7)
    panel.grid(axis="x", alpha=0.3)


def _terms(row: PublishedRow) -> str:
    """The number, with its re-ranking and guidance."""
    helped = [term for term in (row.reranking, row.guidance) if term not in (None, "none")]
    return ", ".join([f"{row.values['fid'].value:.2f}", *helped])
