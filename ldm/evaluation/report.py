"""Files of an evaluation: figures, `report.md`, and `results.json` last of all."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ldm.checkpoints.log_lines import read_curves
from ldm.evaluation.figures import beside, comparison, pair_sheet, save_curves, save_png
from ldm.evaluation.result_types import SetResult
from ldm.evaluation.results import FILE_NAME, write_results
from ldm.evaluation.tables import memorisation_sentence, report
from ldm.io.writing import write


def write_report(
    folder: Path, document: dict[str, Any], sets: Iterable[SetResult], *, curves: Path | None = None
) -> None:
    """Fills a folder.

    Args:
        document: the results.
        sets: their pictures.
        curves: a run's `metrics.jsonl`; nothing is drawn where it doesn't exist.
    """
    figures, notes = {}, {}
    for each in sets:
        if each.shown:
            half = -(-len(each.shown) // 2)
            columns = [comparison(part) for part in (each.shown[:half], each.shown[half:]) if part]
            file = save_png(beside(columns), folder / f"{each.name}.png")
            figures[f"{each.name}: generated, nearest real, right one"] = file.name
        if each.closest is not None:
            title = f"{each.name}: the generated pictures nearest to real ones"
            file = save_png(pair_sheet(each.closest.pairs), folder / f"{each.name}_memorisation.png")
            figures[title], notes[title] = file.name, memorisation_sentence(each.closest)
    if curves is not None and curves.is_file() and (found := read_curves(curves)):
        figures["training"] = save_curves(found, folder / "curves.png", title=str(curves.parent)).name
    write(folder / "report.md", report(document, figures=figures, notes=notes))
    write_results(folder / FILE_NAME, document)
