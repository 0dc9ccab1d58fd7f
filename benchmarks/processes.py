"""Trainings in processes of their own, as a user starts them, and what is left of them. Linux."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchmarks.harness import Verdict

SMALL = (  # a training whose steps take milliseconds
    "+experiment=emoji_vae",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "trainer.log_every_n_steps=1",
    "trainer.precision=32",
)
TWO_RANKS = (*SMALL, "trainer=cpu_ddp", "data.num_workers=1", "batch_size=4", "steps=1000000")
START = 600.0  # seconds in which a training must log its first steps
Training = "subprocess.Popen[bytes]"


@dataclass(frozen=True, kw_only=True)
class Ending(Verdict):
    """How a training ended: seconds after the fault, exit status (None if it went on), processes left."""

    seconds: float
    status: int | None
    left: int = 0


@contextmanager
def training(
    *overrides: str, output: IO[bytes] | int = subprocess.DEVNULL, variables: Mapping[str, str] | None = None
) -> Iterator[Training]:
    """A running `ldm.train`; it and everything below it are killed at the end of the block.

    Args:
        output: where it prints to.
        variables: of its environment, besides this process's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "ldm.train", *overrides],
        stdout=output,
        stderr=output,
        env=os.environ | (variables or {}),
        process_group=0,
    )
    try:
        yield process
    finally:
        family = descendants(process.pid)
        process.kill()
        process.wait()
        survivors(family, seconds=0)


def ended(process: Training, *, within: float) -> tuple[float, int | None]:
    """Seconds until a process has ended, and its exit status; None if it is still running."""
    began = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=within)
    return time.monotonic() - began, process.poll()


def survivors(pids: Iterable[int], *, seconds: float) -> int:
    """How many of some processes are alive after so many seconds; these are killed."""
    family = list(pids)
    wait_for(lambda: not any(map(is_alive, family)), seconds=seconds)
    left = [pid for pid in family if is_alive(pid)]
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return len(left)


def first_steps(process: Training, runs: Path) -> Path:
    """The log of a training, once it has some steps.

    Raises:
        RuntimeError: it logs none.
    """

    def logs() -> list[Path]:
        return [log for log in runs.glob("*/*/metrics.jsonl") if log.stat().st_size > 1000]

    wait_for(lambda: bool(logs()) or process.poll() is not None, seconds=START)
    if not (found := logs()) or process.poll() is not None:
        raise RuntimeError("the training logs nothing: run it by hand to see why")
    return found[0]


def children(pid: int) -> list[int]:
    """Processes that any thread of one has started; its first thread's come first."""
    found: list[int] = []
    for path in sorted(Path(f"/proc/{pid}/task").glob("*"), key=lambda path: int(path.name)):
        with suppress(OSError):
            found += map(int, (path / "children").read_text().split())
    return found


def descendants(pid: int) -> list[int]:
    """Processes below one."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def rank_of(pid: int) -> int:
    """The RANK that a process was started with."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(each.removeprefix(b"RANK=")) for each in variables if each.startswith(b"RANK="))


def peak_memory() -> int:
    """The most bytes that were resident in this process so far; ru_maxrss would begin with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def wait_for(fact: Callable[[], bool], *, seconds: float) -> bool:
    """Whether a fact comes true within a time."""
    deadline = time.monotonic() + seconds
    while not fact() and time.monotonic() < deadline:
        time.sleep(0.05)
    return fact()
