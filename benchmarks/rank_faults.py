"""What becomes of a training of two ranks when one of its processes, or its logger, dies or hangs.

    python -m benchmarks.rank_faults [--root data/emoji] [--patience 20] [--only "rank 1 stopped" ...]

Each fault meets a training of its own, started as a user would start it. Prints how long it went on, its
exit status, the processes that outlived it and the cause that it named. A training fails here if it continues
for more than 120 s, ends without a cause, or leaves a process. Linux. Faults while samples are measured are
in `metric_faults`, cancelled trainings in `cancels`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.harness import Fault, table
from benchmarks.processes import (
    TWO_RANKS,
    Ending,
    Training,
    children,
    descendants,
    ended,
    first_steps,
    rank_of,
    survivors,
    training,
)

LIMIT = 120.0  # seconds that a training may go on
LEFT = 10.0  # seconds after which a process counts as left behind


@dataclass(frozen=True, kw_only=True)
class Processes:
    """Those of a training, by what they are, and its log."""

    watcher: int
    ranks: list[int]
    loader: int
    log: Path

    @classmethod
    def of(cls, process: Training, runs: Path) -> "Processes":
        """The processes of a training that has logged its first steps."""
        log = first_steps(process, runs)
        ranks = sorted(children(process.pid), key=rank_of)
        return cls(watcher=process.pid, ranks=ranks, loader=children(ranks[1])[0], log=log)


def blocked(log: Path) -> None:
    """Makes a log that takes no line and gives no error: a pipe that nobody reads."""
    log.rename(log.with_name("before.jsonl"))
    os.mkfifo(log)


def broken(log: Path) -> None:
    """Makes a log that can't be opened."""
    log.rename(log.with_name("before.jsonl"))
    log.mkdir()


ACTS: dict[str, Callable[[Processes], None]] = {
    "rank 0 killed": lambda found: os.kill(found.ranks[0], signal.SIGKILL),
    "rank 1 killed": lambda found: os.kill(found.ranks[1], signal.SIGKILL),
    "rank 0 stopped": lambda found: os.kill(found.ranks[0], signal.SIGSTOP),
    "rank 1 stopped": lambda found: os.kill(found.ranks[1], signal.SIGSTOP),
    "loader process killed": lambda found: os.kill(found.loader, signal.SIGKILL),
    "loader process stopped": lambda found: os.kill(found.loader, signal.SIGSTOP),
    "logger fails": lambda found: broken(found.log),
    "logger hangs": lambda found: blocked(found.log),
    "watcher killed": lambda found: os.kill(found.watcher, signal.SIGKILL),
}


def meet(
    act: Callable[[Processes], None], folder: Path, _tries: int, *, root: Path, patience: float
) -> Ending:
    """A training that meets a fault."""
    runs, output = folder / "runs", folder / "output.txt"
    waits = (f"patience={patience}", f"+data.worker_timeout={patience / 2}")
    places = (f"runs={runs}", f"data.root={root}")
    with output.open("wb") as stream, training(*TWO_RANKS, *waits, *places, output=stream) as process:
        found = Processes.of(process, runs)
        family = descendants(process.pid)
        act(found)
        seconds, status = ended(process, within=LIMIT)
        left = survivors(family, seconds=LEFT)
    lines = output.read_text(errors="replace").replace("\r", "\n").split("\n")
    causes = [line.removeprefix("ldm: ") for line in lines if line.startswith("ldm: ")]
    cause = " | ".join(causes) or ("(killed itself)" if status == -signal.SIGKILL else "")
    failures = [*["it continues"] * (seconds >= LIMIT), *[f"status {status}"] * (status in (None, 0))]
    failures += [*["no cause"] * (not cause), *[f"{left} processes left"] * bool(left)]
    return Ending(seconds=seconds, status=status, left=left, failures=failures, says=cause)


def main() -> None:
    """Prints the table; exit status 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=Path("data/emoji"), help="folder of prepared shards")
    parser.add_argument("--patience", type=float, default=20.0, help="of the training, in seconds")
    parser.add_argument("--only", nargs="+", choices=ACTS, default=list(ACTS))
    options = parser.parse_args()
    own = {"root": options.root.resolve(), "patience": options.patience}
    faults = [Fault(name=name, run=partial(meet, ACTS[name], **own)) for name in options.only]
    found = table(faults, {"seconds": "seconds", "status": "status", "left": "left"})
    failures = sum(not verdict.passed for _, verdict in found)
    print(f"{len(faults)} faults, {failures} failures, patience {options.patience:g} s")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
