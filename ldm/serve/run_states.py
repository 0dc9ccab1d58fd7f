"""What state a training is in: read from its lock, bundle, checkpoints and log, without touching any of them.

| state | what is there |
| --- | --- |
| running | a process holds the lock of the run's folder, or one of another machine has written just now |
| finished | the bundle, which the last step writes |
| stopped | no lock, no bundle; the newest checkpoint holds all steps of the log: nothing is lost |
| died | no lock, no bundle; the log has steps that no checkpoint holds |
"""

import os
import re
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from ldm import UserError
from ldm.checkpoints.training_state import LOCK, NAME
from ldm.io.curves import read_lines
from ldm.io.links import open_plain, opened

LOG = "metrics.jsonl"
END = 2**20  # bytes of a log that are read for its last step
QUIET = 600  # seconds without a sign of life, after which a running training is said to be silent


class State(NamedTuple):
    """A training's state in a word and in a sentence, its step, and when it last wrote something."""

    word: str
    sentence: str
    step: int
    touched: float  # seconds since 1970; 0 where nothing was written


def state_of(path: Path) -> State:
    """The state of the run in a folder."""
    logged, saved = logged_steps(path / LOG), saved_step(path / "checkpoints")
    step, touched = max(logged, saved), last_written(path)
    silent = time.time() - touched
    held, owner = lock_of(path)
    if held:
        quiet = f"; it has written nothing for {round(silent / 60)} min" if silent > QUIET else ""
        return State("running", f"{owner or 'a process'} is training{quiet}", step, touched)
    if (path / "bundle" / "config.yaml").is_file():
        return State("finished", "its bundle is written", step, touched)
    if owner and not owner.endswith(f" on {socket.gethostname()}") and silent < QUIET:
        sentence = f"{owner} wrote something in the last minutes; its lock can't be seen from this machine"
        return State("running", sentence, step, touched)
    if saved == 0:
        sentence = "it ended before its first checkpoint: the same command starts it anew"
        return State("died", sentence, step, touched)
    resumes = f"the same command resumes it at step {saved}"
    if saved >= logged:
        return State("stopped", f"it was stopped, and everything is saved: {resumes}", step, touched)
    lost = logged - saved
    return State("died", f"it ended without saving its last {lost} steps: {resumes}", step, touched)


def lock_of(path: Path) -> tuple[bool, str]:
    """Whether another process of this machine holds a run, and how the last process that did calls itself."""
    try:
        with opened(path) as folder:
            file = open_plain(folder, path / LOCK, os.O_RDONLY)
    except (OSError, UserError):  # there is none, or a link, pipe or folder has its name
        return False, ""
    owner = ""
    try:
        owner = os.pread(file, 200, 0).decode(errors="replace").strip()
        # a question alone: to take the lock, even for a moment, could turn a starting training away
        os.lockf(file, os.F_TEST, 0)
        return False, owner
    except OSError as error:
        return isinstance(error, BlockingIOError | PermissionError), owner  # else it has no locks
    finally:
        os.close(file)


def logged_steps(log: Path) -> int:
    """The steps in a log, which counts them from 0; 0 where there is none."""
    try:
        found = log.stat()
    except OSError:
        return 0
    return _logged_steps(log, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)  # a list of runs is asked for every few seconds, and few of their logs have grown
def _logged_steps(log: Path, size: int, changed: int) -> int:
    return max((line.step + 1 for line in read_lines(log, most=END)[0]), default=0)


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
