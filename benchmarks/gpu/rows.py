"""Rows of the table: what was measured, what it was held against, and whether that holds."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ldm.evaluation.report import markdown_table

HOLDS, FAILS = "holds", "does not hold"
CONFIRMED, REFUTED = "confirmed", "refuted"
WITHIN = 0.2  # relative difference up to which a model is confirmed
TITLES = ["part", "what", "measured", "held against", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        part: of the run, set by who runs it.
        value: in `unit`; None if the part failed or the machine can't measure it.
        against: a bound, or what was foretold, in words.
        verdict: whether that holds; "" for a number that is only reported.
    """

    what: str
    value: float | None
    unit: str = ""
    against: str = ""
    verdict: str = ""
    part: str = ""

    @property
    def cells(self) -> list[str]:
        """The row as text."""
        number = "-" if self.value is None else f"{self.value:.4g} {self.unit}".strip()
        return [self.part, self.what, number, self.against, self.verdict]


def bounded(what: str, value: float, bound: float, unit: str = "") -> Row:
    """A value that should be at most a bound; a NaN is not."""
    against = f"at most {bound:.4g} {unit}".strip()
    return Row(what=what, value=value, unit=unit, against=against, verdict=HOLDS if value <= bound else FAILS)


def foretold(what: str, value: float | None, expected: float, unit: str, *, source: str) -> Row:
    """A value that a model foretold; without a value nothing is said of the model."""
    verdict = ""
    if value is not None:
        verdict = CONFIRMED if math.isclose(value, expected, rel_tol=WITHIN) else REFUTED
    return Row(
        what=what, value=value, unit=unit, against=f"{expected:.4g} {unit} ({source})", verdict=verdict
    )


def table(rows: Iterable[Row]) -> str:
    """All rows in Markdown."""
    return markdown_table(TITLES, [row.cells for row in rows])
