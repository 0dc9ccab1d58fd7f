"""Trainings of two ranks that are cancelled at random moments, and the processes that outlive them.

    python -m benchmarks.cancels [--tries 50] [--root data/emoji]

Each training is started as a user would start it, and cancelled between its first moment and some steps into
it, in one of four ways by turns. A cancel fails here if the training goes on for more than 120 s after it, or
if any process of it is there 30 s after its end. Linux.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.rank_faults import LIMIT, TRAINING, found_of, is_alive, rank_of
from ldm.distributed.launch import WATCHER

LEFT = 30.0  # seconds after which a process counts as left behind
BEYOND = 1.5  # cancels come within so many times what a training takes to its first steps


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """What came of one.

    Attributes:
        seconds: until the training had ended.
        processes: how many there were when it was cancelled.
        left: how many are there long after it.
    """

    way: str
    seconds: float
    processes: int
    left: int

    @property
    def good(self) -> bool:
        return self.seconds < LIMIT and not self.left


def ranks_of(watcher: int) -> list[int]:
    """The ranks of a watcher and all that they have started, wherever it hangs in the tree of processes."""
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


def started(folder: Path, root: Path) -> "subprocess.Popen[bytes]":
    """The watcher of a training."""
    command = [sys.executable, "-m", "ldm.train", *TRAINING, f"runs={folder}", f"data.root={root}"]
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, stdout=nowhere, stderr=nowhere, process_group=0)


def cancel(way: str, *, root: Path, after: float) -> Cancel:
    """Starts a training, and cancels it after some seconds."""
    with tempfile.TemporaryDirectory() as folder:
        process = started(Path(folder), root)
        try:
            time.sleep(after)
            before = len(ranks_of(process.pid))
            began = time.monotonic()
            WAYS[way](process.pid)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=LIMIT)
            seconds = time.monotonic() - began
            while (left := ranks_of(process.pid)) and time.monotonic() < began + seconds + LEFT:
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return Cancel(way=way, seconds=seconds, processes=before, left=len(left))


def seconds_to_start(root: Path) -> float:
    """What a training takes to its first steps."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        process = started(Path(folder), root)
        try:
            found_of(process, Path(folder))
            return time.monotonic() - began
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """Prints a line for each way; exit status 1 if a process was left or a training went on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="folder of prepared shards")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    root, draw, ways = options.root.resolve(), random.Random(0), list(WAYS)
    span = BEYOND * seconds_to_start(root)
    found = [
        cancel(ways[number % len(ways)], root=root, after=draw.uniform(0, span))
        for number in range(options.tries)
    ]
    for way in ways:
        own = [each for each in found if each.way == way]
        if own:
            seconds, count = [each.seconds for each in own], [each.processes for each in own]
            print(
                f"{'ok  ' if all(each.good for each in own) else 'FAIL'} {way:<18}{len(own):3d} times, of "
                f"{min(count)} to {max(count)} processes {sum(each.left for each in own)} left; "
                f"ended in {median(seconds):.1f} s, at most {max(seconds):.1f} s"
            )
    failures = sum(not each.good for each in found)
    print(f"{len(found)} cancels within {span:.0f} s of the start, {failures} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
