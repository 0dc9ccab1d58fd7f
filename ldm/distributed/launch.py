"""A command run as several ranks on this machine, watched by the process that starts them.

The watching process trains nothing and loads no torch. Ranks get the variables of torchrun, so torchrun, or
srun on several machines, may also start a training. When a rank fails, or none is active any more, all ranks
are ended and the cause is reported; when the watching process dies, the system ends its ranks.

It is our own, as torchrun waits for ranks that hang as long as they do, and reports no cause in a sentence.

A rank that waits for the others sleeps, and so does one that hangs in a logger, a socket or a lock. So a
training hangs once no rank has computed for a while, however long one of them takes for a step, for sampling
or for saving. Without /proc (outside Linux) no rank is ever found idle.
"""

import faulthandler
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.distributed import LOST, follow_parent, is_rank

GRACE = 10.0  # seconds that the other ranks have to end by themselves once one has failed
STOPPING = 120.0  # seconds that all have to save and stop after a signal
POLL = 0.1
BUSY = 0.03  # seconds of computing per second above which a process is active
ANSWER = 1.0  # seconds that a rank has to write where it is
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
WATCHER, PLACE = "LDM_WATCHER", "LDM_PLACE"  # variables: the watching process, and a rank's file of its place
TICKS = os.sysconf("SC_CLK_TCK")
FRAME = re.compile(r'File "(?P<file>.+)", line (?P<line>\d+) in (?P<function>.+)')
RESUME = "the same command resumes from the last checkpoint"


@dataclass(kw_only=True)
class Rank:
    """A process of a training."""

    number: int
    process: "subprocess.Popen[bytes]"
    errors: Path | None  # file with its standard error; the first rank's goes to ours
    place: Path  # file to which it writes where it is when it gets SIGUSR2
    active: float = field(default_factory=time.monotonic)  # when it was last seen active
    _seen: float = field(default_factory=time.monotonic)
    _used: float = 0.0

    @property
    def title(self) -> str:
        """The name of the rank in messages."""
        return f"rank {self.number} (process {self.process.pid})"

    @property
    def status(self) -> int:
        """Its exit status, negative for a signal's number."""
        return self.process.returncode

    def watch(self) -> None:
        """Updates `active`, at most once per second."""
        now = time.monotonic()
        if now - self._seen < 1:
            return
        state, used = condition(self.process.pid)
        # D: waits for a disk, which may take long and isn't a hang; R: computes, or would if it got a core
        if state in ("", "D", "R") or used - self._used > BUSY * (now - self._seen):
            self.active = now
        self._seen, self._used = now, used

    def kill(self) -> None:
        """Ends it with every process that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def fate(self) -> str:
        """How it ended, as a part of a sentence."""
        if self.status == 0:
            return f"{self.title} ended its training before the others did"
        if self.status < 0:
            hint = ", perhaps for want of memory" if self.status == -signal.SIGKILL else ""
            return f"{self.title} was killed by {signal.Signals(-self.status).name}{hint}"
        lines = self.errors.read_text(errors="replace").split("\n") if self.errors else []
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {self.status}")
        return f"{self.title} ended: {last.strip().removeprefix('ldm: ')}"

    def where(self) -> str:
        """Where its main thread is, as a part of a sentence, once it was asked by SIGUSR2.

        This is the innermost frame in one of our packages, or else the innermost of all.
        """
        if condition(self.process.pid)[0] == "T":
            return f"{self.title} is stopped"
        frames = list(FRAME.finditer(self.place.read_text())) if self.place.exists() else []
        if not frames:
            return f"{self.title} does not answer"
        frame = next((each for each in frames if re.search(r"/ldm/\w+/", each["file"])), frames[0])
        file = "/".join(Path(frame["file"]).parts[-3:])
        return f"{self.title} is in {frame['function']} ({file}:{frame['line']})"


def condition(pid: int) -> tuple[str, float]:
    """A process's state letter (proc(5)) and the seconds it has computed; ("", 0) without /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / TICKS


def ranks_to_start(trainer: Mapping[str, Any]) -> int:
    """How many ranks this process has to start for a trainer's config; 1 if it trains itself.

    Raises UserError for more GPUs than there are, or several machines, which only srun or torchrun can start.
    """
    if is_rank():
        return 1
    if trainer.get("num_nodes", 1) > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: a process starts the ranks of one machine only; "
            "start each rank with srun or torchrun (slurm/README.md)"
        )
    devices = trainer["devices"]
    if devices == 1:
        return 1
    if trainer["accelerator"] == "cpu":
        return devices if isinstance(devices, int) else 1
    from torch.cuda import device_count

    there = device_count()
    wanted = there if devices in ("auto", -1) else devices
    if not isinstance(wanted, int) or not 0 < wanted <= there:
        raise UserError(
            f"trainer.devices={devices}: there are {there} GPUs here; write auto, or take trainer=cpu_ddp"
        )
    return wanted


def launch(command: Sequence[str], count: int, *, patience: float) -> tuple[int, str]:
    """Runs a command as `count` ranks; returns an exit status, and the cause if no rank has printed it.

    Signals of FORWARDED are forwarded to every rank, but SIGHUP under nohup. If no rank is active for
    `patience` seconds, all are ended.

    Raises UserError for a patience that is no finite number of seconds, at least 2.
    """
    # a rank is looked at once per second: after one second it would seem idle, whatever it does
    if not 2 <= patience < math.inf:
        raise UserError(f"{patience=} must be a finite number of seconds, at least 2")
    with ExitStack() as stack:  # whatever happens: ranks are killed, signals given back, files removed
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ldm-")))
        ranks: list[Rank] = []
        stack.callback(lambda: [rank.kill() for rank in ranks])
        received = _receive(stack)
        with socket.socket() as listener:  # a port that is free now
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        for number in range(count):  # one by one: those that have started are ended if another can't be
            ranks += [_start(command, number=number, count=count, port=port, folder=folder)]
        failed = _watch(ranks, received, patience=patience)
        return _standstill(ranks, patience=patience) if failed is None else _verdict(failed, ranks)


def follow_watcher() -> None:
    """Ties this process to the one that started it as a rank, if any: it is killed when that dies (Linux).

    From then on it also writes where its main thread is to a file whenever it gets SIGUSR2.
    """
    watcher = int(os.environ.get(WATCHER, 0))
    if not watcher:
        return
    follow_parent(watcher)
    place = Path(os.environ[PLACE]).open("w")  # noqa: SIM115  # stays open for the signal
    faulthandler.register(signal.SIGUSR2, file=place, all_threads=False)


def _start(command: Sequence[str], *, number: int, count: int, port: int, folder: Path) -> Rank:
    """Starts a rank with the variables that torchrun sets, and with its share of the cores."""
    errors, place = folder / f"errors{number}" if number else None, folder / f"place{number}"
    threads = max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else 1
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "")
    defaults = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": loopback}
    variables = {
        "RANK": number,
        "LOCAL_RANK": number,
        "GROUP_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "ldm",
        WATCHER: os.getpid(),
        PLACE: place,
    }
    with ExitStack() as stack:
        stream = stack.enter_context(errors.open("wb")) if errors else None
        process = subprocess.Popen(
            list(command),
            env={name: str(value) for name, value in (defaults | os.environ | variables).items()},
            stdout=stream and subprocess.DEVNULL,
            stderr=stream,
            process_group=0,  # the terminal's Ctrl-C reaches only this process, which forwards it once
        )
    return Rank(number=number, process=process, errors=errors, place=place)


def _receive(stack: ExitStack) -> deque[int]:
    """A queue into which the signals to be forwarded come, until the stack closes."""
    received = deque[int]()
    for number in FORWARDED:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup wants the ranks to outlive their terminal
        # queued only: a handler that sent signals could run in the middle of starting a rank
        earlier = signal.signal(number, lambda number, _: received.append(number))
        stack.callback(signal.signal, number, earlier)
    return received


def _watch(ranks: Sequence[Rank], received: deque[int], *, patience: float) -> list[Rank] | None:
    """Forwards signals and waits for all ranks, or for a while once one has failed or a signal has come.

    Returns those that failed, the first one first; None if none was active for too long.
    """
    running, failed, deadline, stopping = list(ranks), list[Rank](), float("inf"), False
    while running and time.monotonic() < deadline:
        while received:
            stopping, deadline = True, min(deadline, time.monotonic() + STOPPING)
            _send(received.popleft(), running)
        for rank in running:
            rank.watch()
        if not failed and time.monotonic() - max(rank.active for rank in ranks) > patience:
            return None
        for rank in [rank for rank in running if rank.process.poll() is not None]:
            running.remove(rank)
            rank.active = time.monotonic()
            if rank.status:
                failed.append(rank)
                saving = stopping and rank.status > 0  # what a signal kills saves nothing
                deadline = min(deadline, time.monotonic() + (STOPPING if saving else GRACE))
        time.sleep(POLL)
    return failed


def _send(number: int, ranks: Iterable[Rank]) -> None:
    for rank in ranks:
        rank.process.send_signal(number)  # does nothing if it has ended


def _verdict(failed: Sequence[Rank], ranks: Sequence[Rank]) -> tuple[int, str]:
    """The exit status, and the first cause if no rank has printed it on our standard error."""
    if not failed:
        return 0, ""
    causes = [rank for rank in failed if rank.status != LOST] + [rank for rank in ranks if rank.status == 0]
    # else each has lost another one: the last rank, whose errors are not yet printed
    first = next(iter(causes), max(failed, key=lambda rank: rank.number))
    if any(rank.number == 0 and rank.status == 1 for rank in failed) and first.status == 1:
        return 1, ""  # all met the same error, and the first rank printed it
    return 1, f"{first.fate()}; the other ranks were ended; {RESUME}"


def _standstill(ranks: Sequence[Rank], *, patience: float) -> tuple[int, str]:
    """Exit status and cause of ranks that hang: where each of them is."""
    # a rank makes its file when it has registered the handler of SIGUSR2, which would kill it before
    _send(signal.SIGUSR2, [rank for rank in ranks if rank.place.exists()])
    time.sleep(ANSWER)
    places = ", ".join(rank.where() for rank in ranks)
    return 1, f"no rank has done anything for {patience:g} s: {places}; they were ended; {RESUME}"
