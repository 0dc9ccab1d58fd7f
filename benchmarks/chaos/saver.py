"""A process that does nothing but train and save, where training is a nap: what is killed 300 times."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from ldm.checkpoints.training_state import newest_state, save_state, step_of

SIZE = 400_000  # bytes of a state
PIECES = 8  # in which it is written, so that it can be torn
BEGUN, DONE = b"(", b")"


def content(step: int) -> bytes:
    """The state of a step: no other step's, and no damaged one, can be taken for it."""
    return random.Random(step).randbytes(SIZE)


def write(step: int) -> Callable[[Path], None]:
    """What `save_state` is given for a step."""

    def to(path: Path) -> None:
        data, size = content(step), SIZE // PIECES
        with path.open("wb") as file:
            for start in range(0, SIZE, size):
                file.write(data[start : start + size])
                file.flush()

    return to


def child(action: Callable[[], object]) -> int:
    """Runs an action in a process and group of its own; its status is 0 after it, and 1 if it raises."""
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it has ended already
            os.setpgid(pid, pid)
        return pid
    try:
        action()
        os._exit(0)
    except BaseException:
        os._exit(1)


def start(root: Path, first: int, *, nap: float) -> tuple[int, int]:
    """Starts to save step after step; returns the process and the pipe that it tells of each save through.

    Args:
        root: where the states go.
        first: the first step.
        nap: seconds between two saves.
    """
    reading, writing = os.pipe()
    parent = os.getpid()

    def save() -> None:
        step = first
        while os.getppid() == parent:
            time.sleep(nap)
            os.write(writing, BEGUN)
            save_state(root, step, write(step), keep=2)
            os.write(writing, DONE)
            step += 1

    pid = child(save)
    os.close(writing)
    return pid, reading


def end(pid: int, reading: int) -> bytes:
    """Kills it and returns what it still had told."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    told = b""
    while piece := os.read(reading, 65536):
        told += piece
    os.close(reading)
    return told


def wrong(root: Path, at_least: int) -> tuple[int, list[str]]:
    """The step that a training would go on from, and what is wrong with it."""
    found = newest_state(root)
    if found is None:
        return 0, [f"step {at_least} was saved and there is no state"] if at_least else []
    step, failures = step_of(found.parent), []
    if found.read_bytes() != content(step):
        failures.append(f"the state of step {step} has other bytes")
    if step < at_least:
        failures.append(f"step {at_least} was saved and {step} is the newest")
    return step, failures


def untidy(root: Path, keep: int = 2) -> list[str]:
    """What a save has left that it shouldn't."""
    names = sorted(path.name for path in root.iterdir())
    states = [name for name in names if name.startswith("step=")]
    rest = set(names) - set(states) - {"newest"}
    return [f"left: {', '.join(sorted(rest))}"] * bool(rest) + [f"kept: {states}"] * (len(states) > keep)
