"""`report.md`: the numbers, curves and pictures of a training on one page that needs no service."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.utilities import rank_zero_warn

from ldm.checkpoints.provenance import facts_of, published
from ldm.evaluation.figures import LITERATURE, Curves, literature_beside, save_curves
from ldm.evaluation.report import markdown_table
from ldm.io.curves import read_curves
from ldm.io.writing import write

FILE_NAME, LOG = "report.md", "metrics.jsonl"


class RunReport(Callback):
    """Writes `report.md` when training ends; a failure is a warning, since the run is complete without it.

    Without a `metrics.jsonl` in the folder, the run directory, there is no report.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        """Writes the report on the first rank."""
        if not trainer.is_global_zero or not (self.folder / LOG).is_file():
            return
        try:
            write_run_report(self.folder)
        except Exception as error:
            rank_zero_warn(f"{self.folder / FILE_NAME} was not written ({type(error).__name__}: {error})")


def write_run_report(folder: Path) -> Path:
    """Writes `report.md` and `curves.png` of a run directory; returns the page.

    Raises UserError where nothing was logged. Raises OSError where there is no `metrics.jsonl`, or no room.
    """
    curves, facts = read_curves(folder / LOG), published(facts_of(folder))
    figure = save_curves(curves, folder / "curves.png", title=str(folder))
    run = facts.pop("run", {})
    parts = [
        f"# {facts.get('name', folder.name)}",
        str(facts.get("summary", "")),
        _origin(run),
        markdown_table(("number", "first", "last", "least", "most", "last step"), _numbers(curves)),
        f"## Curves\n\n![curves]({figure.name})",
        *_literature(curves),
        *_pictures(folder),
        f"## Config\n\n```yaml\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=True)}```",
    ]
    return write(folder / FILE_NAME, "\n\n".join(part for part in parts if part) + "\n")


def _origin(run: Mapping[str, Any]) -> str:
    """When, with which code and by which command the training was started and resumed."""
    if not run:
        return ""
    commit = "an unknown commit" if run["commit"] is None else f"commit {run['commit'][:12]}"
    changed = " with changes" if run["dirty"] else ""
    changes = [
        f"\n\nFrom step {start['step']} on with {key}={new}, before {old}."
        for start in run.get("resumed", [])
        for key, (old, new) in start["changed"].items()
    ]
    return (
        f"Started {run['started'][:16].replace('T', ' ')} UTC at {commit}{changed}, torch "
        f"{run['torch']}, config {run['config_hash'][:12]}:\n\n```\n{run['command']}\n```" + "".join(changes)
    )


def _numbers(curves: Curves) -> list[list[str]]:
    """One row per curve: its name, first, last, least and largest value, and its last step."""
    rows = []
    for name in sorted(name for name in curves if not name.startswith(LITERATURE)):
        steps, values = zip(*curves[name], strict=True)
        shown = (values[0], values[-1], min(values), max(values))
        rows.append([name, *(f"{value:.4g}" for value in shown), str(steps[-1])])
    return rows


def _literature(curves: Curves) -> list[str]:
    """Tables of published numbers beside ours, for metrics that the literature reports."""
    sections = []
    for name in sorted(curves):
        if lines := literature_beside(curves, name):
            ours = [["**this run, last**", f"{curves[name][-1][1]:.4g}"]]
            rows = ours + [[system, f"{number:.4g}"] for system, number in lines.items()]
            sections.append(
                f"## {name} beside the literature\n\nOther captions, counts and pictures: read "
                f"experiments/README.md before you compare.\n\n{markdown_table(('system', name), rows)}"
            )
    return sections


def _pictures(folder: Path) -> Sequence[str]:
    """The sheet of the last validation."""
    found = (re.fullmatch(r"step=(\d+)", path.stem) for path in (folder / "samples").glob("*.png"))
    sheets = {int(match[1]): match[0] for match in found if match}
    last = max(sheets, default=None)
    return [f"## Pictures at step {last}\n\n![step {last}](samples/{sheets[last]}.png)"] if sheets else []
