"""A crash at every line of the save protocol, on a folder in each of the states that it can be in."""

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks.chaos import saver
from benchmarks.chaos.verdict import Loss
from benchmarks.harness import Fault
from ldm.checkpoints import training_state
from ldm.io import writing as files

WATCHED = {training_state.__file__, files.__file__, saver.__file__}
STEP = 3  # the one that is saved when the crash comes


def count(root: Path) -> int:
    """Lines that a save takes, as counted in a process of its own."""
    reading, writing = os.pipe()

    def act() -> None:
        lines = traced(root, None)
        os.write(writing, str(lines).encode())

    pid = saver.child(act)
    os.close(writing)
    os.waitpid(pid, 0)
    text = os.read(reading, 100)
    os.close(reading)
    return int(text)


def traced(root: Path, fatal: int | None) -> int:
    """Saves, and ends this process by SIGKILL at the given line; returns how many lines there were."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            if lines == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            lines += 1
        return trace

    sys.settrace(trace)
    training_state.save_state(root, STEP, saver.write(STEP), keep=2)
    sys.settrace(None)
    return lines


def crash(prepare: Callable[[Path], int], folder: Path, tries: int) -> Loss:
    """Crashes at every line, or at `tries` of them spread over all.

    Args:
        prepare: makes the folder of states and returns the newest step that is there.
        folder: an empty one.
        tries: the most.
    """
    interval = STEP - prepare(folder / "count")
    total = count(folder / "count")
    failures, lost = [], 0
    fatal = sorted({total * number // tries for number in range(tries)}) if tries < total else range(total)
    for line in fatal:
        root = folder / str(line)
        before = prepare(root)
        status = os.waitstatus_to_exitcode(os.waitpid(saver.child(partial(traced, root, line)), 0)[1])
        step, wrongs = saver.wrong(root, before)
        wrongs += [f"ended with {status}"] * (status != -signal.SIGKILL)
        lost = max(lost, STEP - step)
        training_state.save_state(root, STEP + 1, saver.write(STEP + 1), keep=2)
        wrongs += saver.wrong(root, STEP + 1)[1] + saver.untidy(root)
        failures += [f"line {line}: {sentence}" for sentence in wrongs]
    return Loss(tries=len(fatal), failures=failures, lost=lost, interval=interval, says=f"{total} lines")


def nothing(root: Path) -> int:
    """No state yet, and no folder."""
    return 0


def some(root: Path) -> int:
    """Two states."""
    for step in (STEP - 2, STEP - 1):
        training_state.save_state(root, step, saver.write(step), keep=2)
    return STEP - 1


def damaged(root: Path) -> int:
    """Two states, a damaged one of the step that is saved, and the rest of an interrupted save."""
    newest = some(root)
    folder = training_state.save_state(root, STEP, saver.write(0), keep=3)
    os.truncate(folder / training_state.STATE, 1000)
    (root / ".tmp-rest").mkdir()
    (root / ".tmp-rest" / training_state.STATE).write_bytes(b"torn")
    return newest


FAULTS = [
    Fault(area="saves", name=f"crash at each line, {name}", tries=(10**6, 12), run=partial(crash, prepare))
    for name, prepare in (("first save", nothing), ("third save", some), ("over a damaged state", damaged))
]
