"""Tables of the index: plain cells, written as Markdown here and sent to W&B as they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldm.evaluation.published import METRICS, PublishedRow
from ldm.evaluation.report import markdown_table
from ldm.evaluation.results import spreads

UNVERIFIED = "†"
MEASURED = ("metric", "run", "value", "error bar", "floor", "ceiling", "real", "pictures", "seeds")
LITERATURE = {
    "data set": "dataset",
    "split": "split",
    "N": "images",
    "zero-shot": "zero_shot",
    "re-ranking": "reranking",
    "guidance": "guidance",
    "px": "resolution",
    "resize": "resize",
    "system's paper": "paper",
    "printed in": "printed_in",
    "table": "table",
    "page": "page",
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with its name; cells are text."""

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table in Markdown."""
        return markdown_table(self.header, self.rows)


def measured_table(name: str, runs: Mapping[str, Mapping[str, Any]]) -> Table:
    """Numbers measured here under one protocol, metric by metric, runs in the order of their names.

    Args:
        runs: results document by experiment.
    """
    rows = [
        (_metric(row), run, row, document["sets"].get(row["set"], {}).get("seeds"))
        for run, document in runs.items()
        for row in document["rows"]
    ]
    return Table(
        name=name,
        header=MEASURED,
        rows=[
            [
                metric,
                run,
                *_measured(row),
                *(_number(row.get(key)) for key in ("floor", "ceiling", "real")),
                f"{row['images']}, too few" if row.get("few") else str(row["images"]),
                "" if seeds is None else "-".join(map(str, seeds)),
            ]
            for metric, run, row, seeds in sorted(rows, key=lambda each: each[:2])
        ],
    )


def literature_table(rows: Sequence[PublishedRow]) -> Table:
    """Published numbers with their protocols; a dagger follows what was not verified."""
    return Table(
        name="literature",
        header=("system", "FID", "IS", *LITERATURE),
        rows=[
            [
                row.system,
                *(_mark(_printed(row, metric), row, metric) for metric in METRICS),
                *(_mark(_fact(getattr(row, field)), row, field) for field in LITERATURE.values()),
            ]
            for row in rows
        ],
    )


def _metric(row: Mapping[str, Any]) -> str:
    """Set and name, with a note if the reference is a file of unknown preparation."""
    note = " (reference of unknown preparation)" if row.get("foreign") else ""
    return f"{row['set']}/{row['metric']}{note}"


def _measured(row: Mapping[str, Any]) -> tuple[str, str]:
    """The number with its widest error bar, and what this is taken over; then the other error bars."""
    known = spreads(row)
    if not known:
        return _number(row["value"]), "none"
    (widest, over), *others = known
    rest = "".join(f"; ± {spread:.2g} over {what}" for spread, what in others)
    return f"{_number(row['value'])} ± {widest:.2g}", f"{over}{rest}"


def _printed(row: PublishedRow, metric: str) -> str:
    if metric not in row.values:
        return ""
    value, spread = row.values[metric]
    return f"{value:.2f}" if spread is None else f"{value:.2f} ± {spread:.2f}"


def _mark(cell: str, row: PublishedRow, name: str) -> str:
    if row.verified(name) or (name in METRICS and not cell):
        return cell
    return f"{cell} {UNVERIFIED}".strip()


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
