"""Trainings of two ranks that are cancelled at random moments, and the processes that outlive them.

    python -m benchmarks.cancels [--tries 50] [--root data/emoji]

Each training is started as a user would start it, and cancelled between its first moment and some steps into
it, in one of four ways. A cancel fails here if the training continues for more than 120 s after it, or
if any process of it is there 30 s after its end. Linux.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness import Fault, Verdict, bring_about, table
from benchmarks.processes import (
    TWO_RANKS,
    ended,
    first_steps,
    is_alive,
    rank_of,
    survivors,
    training,
    wait_for,
)
from ldm.distributed.launch import WATCHER

LIMIT = 120.0  # seconds that a training may go on
LEFT = 30.0  # seconds after which a process counts as left behind
BEYOND = 1.5  # cancels come within so many times what a training takes to its first steps


@dataclass(frozen=True, kw_only=True)
class Cancels(Verdict):
    """What came of all cancels in one way: processes when they came, and those left; seconds to the end."""

    processes: str
    left: int
    median: float
    longest: float


def ranks_of(watcher: int) -> list[int]:
    """The ranks of a watcher and every process that they started, at any depth."""
    mark, found = f"{WATCHER}={watcher}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if is_alive(pid)]


def kill_rank(watcher: int) -> None:
    """Kills the second rank, or the watcher where there is none yet."""
    ranks = [pid for pid in ranks_of(watcher) if rank_of(pid) == 1]
    os.kill(min(ranks, default=watcher), signal.SIGKILL)


WAYS: dict[str, Callable[[int], None]] = {
    "SIGINT": lambda watcher: os.kill(watcher, signal.SIGINT),
    "SIGTERM": lambda watcher: os.kill(watcher, signal.SIGTERM),
    "SIGKILL": lambda watcher: os.kill(watcher, signal.SIGKILL),
    "SIGKILL to a rank": kill_rank,
}


def cancel(act: Callable[[int], None], runs: Path, *, root: Path, after: float) -> tuple[int, float, int]:
    """Cancels a training after some seconds: its processes then, seconds to its end, processes left."""
    with training(*TWO_RANKS, f"runs={runs}", f"data.root={root}") as process:
        time.sleep(after)
        before = len(ranks_of(process.pid))
        act(process.pid)
        seconds, _ = ended(process, within=LIMIT)
        wait_for(lambda: not ranks_of(process.pid), seconds=LEFT)
        return before, seconds, survivors(ranks_of(process.pid), seconds=0)


def cancel_all(
    act: Callable[[int], None], folder: Path, tries: int, *, root: Path, span: float, seed: int
) -> Cancels:
    """Cancels so many trainings in one way, within a span of seconds after their start."""
    moments = random.Random(seed)
    found = []
    for number in range(tries):
        after = moments.uniform(0, span)
        found.append(cancel(act, folder / str(number), root=root, after=after))
    counts, seconds, left = zip(*found, strict=True)
    failures = [f"it went on for {own:.0f} s" for own in seconds if own >= LIMIT]
    failures += [f"{own} processes left" for own in left if own]
    return Cancels(
        tries=tries,
        failures=failures,
        processes=f"{min(counts)} to {max(counts)}",
        left=sum(left),
        median=median(seconds),
        longest=max(seconds),
    )


def seconds_to_start(root: Path) -> float:
    """What a training takes to its first steps."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with training(*TWO_RANKS, f"runs={folder}", f"data.root={root}") as process:
            first_steps(process, Path(folder))
            return time.monotonic() - began


def main() -> None:
    """Prints a row for each way; exit status 1 if a process was left or a training went on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="folder of prepared shards")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    root = options.root.resolve()
    span = BEYOND * seconds_to_start(root)
    faults = []
    for number, (way, act) in enumerate(WAYS.items()):
        tries = len(range(number, options.tries, len(WAYS)))
        run = partial(cancel_all, act, root=root, span=span, seed=number)
        faults += [Fault(name=way, run=run, tries=(tries, tries))] * bool(tries)
    columns = {"of processes": "processes", "left": "left", "median s": "median", "at most": "longest"}
    found = table(faults, columns, lambda fault: bring_about(fault, fault.tries[0]))
    failures = sum(len(verdict.failures) for _, verdict in found)
    print(f"{options.tries} cancels within {span:.0f} s of the start, {failures} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
