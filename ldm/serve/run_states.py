"""What state a training is in: read from its lock, bundle, checkpoints and log, without touching any of them.

| state | what is there |
| --- | --- |
| running | a process holds the lock of the run's folder |
| finished | the bundle, which the last step writes |
| stopped | no lock, no bundle; the newest checkpoint holds all steps of the log: nothing is lost |
| died | no lock, no bundle; the log has steps that no checkpoint holds |
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ldm.checkpoints.training_state import LOCK, NAME
from ldm.io.curves import read_lines

LOG = "metrics.jsonl"
QUIET = 600  # seconds without a sign of life, after which a running training is said to be silent


class State(NamedTuple):
    """A training's state in a word and in a sentence, its step, and when it last wrote something."""

    word: str
    sentence: str
    step: int
    touched: float  # seconds since 1970; 0 where nothing was written


def state_of(path: Path) -> State:
    """The state of the run in a folder."""
    lines, _ = read_lines(path / LOG)
    logged, saved = max((line.step + 1 for line in lines), default=0), saved_step(path / "checkpoints")
    step, touched = max(logged, saved), last_written(path)
    owner = lock_owner(path)
    if owner is not None:
        silent = time.time() - touched
        quiet = f"; it has written nothing for {round(silent / 60)} min" if touched and silent > QUIET else ""
        return State("running", f"{owner or 'a process'} is training{quiet}", step, touched)
    if (path / "bundle" / "config.yaml").is_file():
        return State("finished", "its bundle is written", step, touched)
    if saved == 0:
        return State(
            "died", "it ended before its first checkpoint: the same command starts it anew", step, touched
        )
    resumes = f"the same command resumes it at step {saved}"
    if saved >= logged:
        return State("stopped", f"it was stopped, and everything is saved: {resumes}", step, touched)
    lost = logged - saved
    return State("died", f"it ended without saving its last {lost} steps: {resumes}", step, touched)


def lock_owner(path: Path) -> str | None:
    """What the process that holds a run calls itself, perhaps empty; None where no other process holds it."""
    try:
        file = os.open(path / LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:  # a question alone: to take the lock, even for a moment, could turn a starting training away
        os.lockf(file, os.F_TEST, 0)
        return None
    except OSError as error:
        taken = isinstance(error, BlockingIOError | PermissionError)  # else a file system without locks
        return os.pread(file, 200, 0).decode(errors="replace").strip() if taken else None
    finally:
        os.close(file)


def saved_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint in a folder; 0 where there is none."""
    found = (re.fullmatch(NAME, each.name) for each in checkpoints.glob("step=*"))
    return max((int(match[1]) for match in found if match), default=0)


def last_written(path: Path) -> float:
    """When the log or a checkpoint was last written, in seconds since 1970; 0 where there is neither."""
    times = [0.0]
    for each in (path / LOG, path / "checkpoints", path / "bundle"):
        with suppress(OSError):
            times.append(each.lstat().st_mtime)
    return max(times)
