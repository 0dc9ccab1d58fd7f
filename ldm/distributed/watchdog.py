"""Whether processes that train together still do anything, and where they are if they don't (Linux).

A rank that waits for the others sleeps, and so does one that hangs in a logger, a socket or a lock; a stopped
one does nothing either. So a training hangs once none of its ranks has computed for a while, however long a
step, a drawing or a save may take one of them. Other systems have no /proc: there nothing is ever found idle.
"""

import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

BUSY = 0.03  # seconds of computing within a second above which a process does something
ANSWER = 1.0  # seconds that a process has to tell where it is
FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(kw_only=True)
class Pulse:
    """When a process was last seen doing something.

    Attributes:
        pid: of the process.
        last: seconds of `time.monotonic`.
    """

    pid: int
    last: float = field(default_factory=time.monotonic)
    _seen: float = field(default_factory=time.monotonic)
    _used: float = 0.0

    def feel(self) -> None:
        """Looks once more; looks within a second of the last one are not taken."""
        now = time.monotonic()
        if now - self._seen < 1:
            return
        state, used = condition(self.pid)
        # D: waits for a disk, which may take long and isn't a hang; R: computes, or would if it were let;
        # empty: there is no /proc to tell
        if state in ("", "D", "R") or used - self._used > BUSY * (now - self._seen):
            self.last = now
        self._seen, self._used = now, used


def condition(pid: int) -> tuple[str, float]:
    """A process's state letter (proc(5)) and the seconds it has computed; ("", 0) if it can't be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / TICKS


def tell_place(path: Path) -> None:
    """From now on this process writes where its main thread is to a file whenever it gets SIGUSR2."""
    faulthandler.register(signal.SIGUSR2, file=path.open("w"), all_threads=False)


def places(pids: Sequence[int], paths: Sequence[Path]) -> list[str]:
    """Where each process is, in words: "is stopped", "in <function> (<file>:<line>)" or "does not answer"."""
    asked = [
        path.exists() and condition(pid)[0] not in ("", "T", "Z")
        for pid, path in zip(pids, paths, strict=True)
    ]
    for pid, answers in zip(pids, asked, strict=True):
        if answers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGUSR2)
    time.sleep(ANSWER)
    silent = ["is stopped" if condition(pid)[0] == "T" else "does not answer" for pid in pids]
    return [
        place(path.read_text()) if answers else otherwise
        for path, answers, otherwise in zip(paths, asked, silent, strict=True)
    ]


def place(trace: str) -> str:
    """The innermost frame of our own layers in what `faulthandler` wrote, else the innermost of all."""
    frames = list(FRAME.finditer(trace))
    if not frames:
        return "does not answer"
    ours = (frame for frame in frames if re.search(r"/ldm/\w+/", frame["file"]))
    frame = next(ours, frames[0])
    return f"is in {frame['function']} ({'/'.join(Path(frame['file']).parts[-3:])}:{frame['line']})"
