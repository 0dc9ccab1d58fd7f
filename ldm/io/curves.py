"""Curves of a `metrics.jsonl`; damaged lines are left out, so that a damaged log never stops a command."""

import json
from pathlib import Path
from typing import NamedTuple

LOSS = "val/loss_fixed"  # of held-out pictures, with noise that no seed changes
SECONDS, CPU_SECONDS = "val/seconds", "val/cpu_seconds"  # clocks in the log


class Line(NamedTuple):
    """One step of a log: the line as it was written, and its numbers by name."""

    text: str
    step: int
    values: dict[str, float]


def read_lines(path: Path, *, most: int | None = None) -> tuple[list[Line], int]:
    """The whole lines in the last `most` bytes of a `metrics.jsonl`, and the number of damaged ones."""
    data = b""
    if path.is_file():  # a pipe may never end
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - most) if most else 0)
            data = file.read()
    raw = [line.strip(b"\0 \t\r") for line in data.split(b"\n")]  # a loss of power leaves NULs
    lines = [_line(line) for line in raw if line]
    whole = [line for line in lines if line is not None]
    return whole, len(lines) - len(whole)


def read_curves(path: Path, *, most: int | None = None) -> dict[str, list[tuple[int, float]]]:
    """Curves of a log by name, each a list of (step, value); `most` as for `read_lines`."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_lines(path, most=most)[0]:
        for name, value in line.values.items():
            curves.setdefault(name, []).append((line.step, value))
    return curves


def _line(raw: bytes) -> Line | None:
    """One line, or None if it is not a step with numbers."""
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
