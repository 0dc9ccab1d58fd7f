"""Everything that one GPU can show: `make gpu`, or `python -m benchmarks.gpu [--rehearse] [--out runs/gpu]`.

Takes at most eight minutes, downloads nothing, and writes one table (gpu.md) and one file of numbers
(gpu.json). A part that fails, or for which there is no time left, is a row of the table, and the next one
follows. Without a GPU, or with `--rehearse`, the same parts run at toy sizes in less than a minute: their
speeds say nothing. Exits with status 1 if a part failed or a bound does not hold.
"""

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from benchmarks.gpu.fid import fid
from benchmarks.gpu.forecasts import forecasts
from benchmarks.gpu.loading import loading
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.parity import parity
from benchmarks.gpu.rows import FAILS, Row, table
from benchmarks.gpu.speed import speed
from benchmarks.gpu.strategies import strategies
from ldm.checkpoints.provenance import environment, git_state
from ldm.io.writing import write
from ldm.planning.fitting import quiet

Part = Callable[[Machine], Iterator[Row]]
SECONDS = 460  # of all parts together: eight minutes with the imports
FAILED = "failed"
# by name: the part, and the most seconds that it may take; compiling comes last, as it takes longest
PARTS: Mapping[str, tuple[Part, int]] = {
    "parity": (parity, 90),
    "speed": (partial(speed, compiled=False), 100),
    "forecasts": (forecasts, 120),
    "loading": (loading, 40),
    "strategies": (strategies, 60),
    "fid": (fid, 40),
    "compiled": (partial(speed, compiled=True), 240),
}


def run(machine: Machine, parts: Mapping[str, tuple[Part, int]] = PARTS) -> list[Row]:
    """The rows of all parts, each within its own time and that of all."""
    rows: list[Row] = []
    ends = monotonic() + SECONDS
    for name, (part, most) in parts.items():
        began = monotonic()
        for row in guarded(partial(part, machine), seconds=min(most, int(ends - began))):
            rows.append(Row(**{**asdict(row), "part": name}))
            print(" | ".join(rows[-1].cells), flush=True)
        rows.append(Row(part=name, what="took", value=monotonic() - began, unit="s"))
        machine.forget()
    return rows


def guarded(part: Callable[[], Iterator[Row]], *, seconds: int) -> Iterator[Row]:
    """The rows of a part; one that says so where it fails or is not done in time."""
    if seconds <= 0:
        yield Row(what="not run: no time is left", value=None, verdict=FAILED)
        return
    before = signal.signal(signal.SIGALRM, partial(ring, seconds))
    signal.alarm(seconds)
    try:
        yield from part()
    except Exception as error:  # whatever it is, it is a finding, and the other parts follow
        traceback.print_exc()
        first = str(error).strip().split("\n")[0]
        yield Row(what=f"{type(error).__name__}: {first[:100]}", value=None, verdict=FAILED)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ring(seconds: int, *_: Any) -> None:
    """Ends a part."""
    raise TimeoutError(f"it was not done in {seconds} s")


def write_results(machine: Machine, rows: list[Row], out: Path) -> None:
    """Writes the table and the numbers."""
    kind = " (a rehearsal at toy sizes: its speeds say nothing)" if machine.rehearsal else ""
    state = f"{machine.name}, torch {torch.__version__}{kind}, commit {git_state()['commit']}"
    head = f"# `python -m benchmarks.gpu`\n\n{state}\n"
    out.mkdir(parents=True, exist_ok=True)
    write(out / "gpu.md", f"{head}\n{table(rows)}\n")
    document = {"device": machine.name, "rehearsal": machine.rehearsal, **git_state(), **environment()}
    write(out / "gpu.json", json.dumps(document | {"rows": [asdict(row) for row in rows]}, indent=1) + "\n")


def main() -> int:
    """Reads the options, runs all parts, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rehearse", action="store_true", help="toy sizes, as without a GPU")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args()
    quiet()
    machine = Machine.here(rehearsal=options.rehearse)
    rows = run(machine)
    write_results(machine, rows, options.out)
    print(f"\n{options.out / 'gpu.md'}\n{options.out / 'gpu.json'}")
    return int(any(row.verdict in (FAILS, FAILED) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
