"""Curves of a `metrics.jsonl`, from its whole lines: a damaged log never stops what reads it."""

import json
from pathlib import Path
from typing import NamedTuple


class Line(NamedTuple):
    """What was logged at a step: the line as it was written, and its numbers by name."""

    text: str
    step: int
    values: dict[str, float]


def read_lines(path: Path) -> tuple[list[Line], int]:
    """The whole lines of a `metrics.jsonl` in their order, and the number of damaged ones.

    NULs around a line, which a loss of power leaves, are no part of it.
    """
    data = path.read_bytes() if path.is_file() else b""  # a pipe would never end
    raw = [line.strip(b"\0 \t\r") for line in data.split(b"\n")]
    lines = [_line(line) for line in raw if line]
    whole = [line for line in lines if line is not None]
    return whole, len(lines) - len(whole)


def read_curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a log by name, each a list of (step, value); damaged lines are left out."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(path)[0]:
        for name, value in line.values.items():
            curves.setdefault(name, []).append((line.step, value))
    return curves


def _line(raw: bytes) -> Line | None:
    """One line, or None if it is something else than a step and numbers."""
    try:
        text = raw.decode()
        values = json.loads(text)
        step = values.pop("step")
        if not isinstance(step, int) or not 0 <= step < 2**63:
            return None
        if not all(isinstance(value, int | float) for value in values.values()):
            return None
        return Line(text, step, {name: float(value) for name, value in values.items()})
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
