"""Sweeps without training: one measurement for each way to draw, as a table."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm import UserError
from ldm.evaluation.report import csv_text
from ldm.io.writing import write

if TYPE_CHECKING:  # the command checks a sweep before it loads torch
    from ldm.evaluation.result_types import Row

LISTS = {  # list -> axis
    "bundles": "bundle",
    "ema_lengths": "ema_length",
    "samplers": "sampler",
    "num_steps": "steps",
    "scales": "scale",
}
AXES = tuple(LISTS.values())
NUMBER = (
    "nfe",
    "set",
    "metric",
    "value",
    "sd",
    "seeds",
    "images",
    "few",
    "foreign",
    "floor",
    "ceiling",
    "real",
)
REST = ("seconds", "params", "protocol")

Point = Mapping[str, Any]  # axis -> value, null for what the command or the bundle has


def points(lists: Mapping[str, Sequence[Any] | None]) -> list[Point]:
    """All combinations of the values in `LISTS`; an axis whose list is null is not varied.

    Raises:
        UserError: a list that is unknown, empty or none.
    """
    for name, values in lists.items():
        if name not in LISTS:
            raise UserError(f"sweep.{name} is unknown: a sweep has {', '.join(LISTS)}")
        if values is not None and (not isinstance(values, list) or not values):
            raise UserError(
                f"sweep.{name}={values} must be a list with a value or more, as sweep.scales=[1,2,4]"
            )
    combinations = product(*(lists.get(name) or [None] for name in LISTS))
    return [dict(zip(AXES, values, strict=True)) for values in combinations]


def lines_of(point: Point, rows: Sequence["Row"], *, ruler: str) -> list[dict[str, Any]]:
    """One line a number: the point, the number with its references, and the protocol that it was taken under.

    Args:
        ruler: of the protocol; the points of a sweep share it, their hashes differ.
    """
    fields = (*NUMBER, *REST)
    return [{**point, **{name: getattr(row, name) for name in fields}, "ruler": ruler} for row in rows]


def write_table(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The lines as csv; what isn't known is empty."""
    fields = (*AXES, *NUMBER, *REST, "ruler")
    write(path, csv_text([fields, *([line.get(name) for name in fields] for line in lines)]))
