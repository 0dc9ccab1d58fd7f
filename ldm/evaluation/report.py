"""Files of an evaluation: figures, `report.md`, and `results.json` last of all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.evaluation.curves import read_curves, save_curves
from ldm.evaluation.figures import beside, comparison, save_png
from ldm.evaluation.results import FILE_NAME, write_results
from ldm.evaluation.rows import Shown
from ldm.evaluation.tables import report


def write_report(
    folder: Path,
    document: dict[str, Any],
    *,
    shown: Mapping[str, Sequence[Shown]],
    curves: Path | None = None,
) -> None:
    """Fills a folder.

    Args:
        document: the results.
        shown: pictures by caption set.
        curves: a run's `metrics.jsonl`; nothing is drawn where it doesn't exist.
    """
    figures = {}
    for name, lines in shown.items():
        if lines:
            half = -(-len(lines) // 2)
            columns = [comparison(part) for part in (lines[:half], lines[half:]) if part]
            file = save_png(beside(columns), folder / f"{name}.png")
            figures[f"{name}: generated, nearest real, right one"] = file.name
    if curves is not None and curves.is_file() and (found := read_curves(curves)):
        figures["training"] = save_curves(found, folder / "curves.png", title=str(curves.parent)).name
    (folder / "report.md").write_text(report(document, figures=figures), encoding="utf-8")
    write_results(folder / FILE_NAME, document)
