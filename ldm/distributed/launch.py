"""A command run once a rank on this machine, watched by the process that started the ranks.

The watcher trains nothing and loads no torch. Ranks get the variables of torchrun, so a training may be
started by torchrun, too, or by srun on several machines. When a rank fails, or none does anything any more
(`watchdog.py`), all are ended and the cause is told; when the watcher dies the system ends its ranks.
"""

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ldm import UserError
from ldm.distributed.watchdog import Pulse, places, tell_place

GRACE = 10.0  # seconds that the other ranks have to end by themselves once one has failed
STOPPING = 120.0  # seconds that all have to save and stop once a signal has asked them to
POLL = 0.1
LOST = 75  # exit status of a rank that ended because another one had
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
WATCHER, PLACE = "LDM_WATCHER", "LDM_PLACE"  # variables: the watcher's pid, and a file for `tell_place`
PR_SET_PDEATHSIG = 1  # prctl(2)
AGAIN = "the same command resumes from the last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A process of a training.

    Attributes:
        errors: file of what it says on standard error; the first rank says it on ours.
        place: file of where it is, once it is asked.
        pulse: when it last did something.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    errors: Path | None
    place: Path
    pulse: Pulse

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def status(self) -> int:
        return self.process.returncode

    def kill(self) -> None:
        """Ends it and all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()

    def fate(self) -> str:
        """How it ended, as a part of a sentence."""
        name = f"rank {self.number} (process {self.pid})"
        if self.status == 0:
            return f"{name} ended its training before the others did"
        if self.status < 0:
            hint = ", perhaps for want of memory" if self.status == -signal.SIGKILL else ""
            return f"{name} was killed by {signal.Signals(-self.status).name}{hint}"
        lines = self.errors.read_text(errors="replace").split("\n") if self.errors else []
        last = next((line for line in reversed(lines) if line.strip()), f"exit status {self.status}")
        return f"{name} ended: {last.strip().removeprefix('ldm: ')}"


def is_rank() -> bool:
    """Whether torchrun, srun or `launch` started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 or int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def ranks_to_start(trainer: Mapping[str, Any]) -> int:
    """How many ranks this process is to start for a trainer's config; 1 if it trains itself.

    Raises:
        UserError: more GPUs than there are, or several machines, which only srun or torchrun can start.
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
            f"trainer.devices={devices}: there are {there} GPUs here; write auto or how many of them, or "
            "take trainer=cpu_ddp"
        )
    return wanted


def launch(command: Sequence[str], count: int, *, patience: float) -> tuple[int, str]:
    """Runs a command as `count` ranks; returns an exit status and the cause that is still to be told, or "".

    SIGINT, SIGTERM and SIGUSR1 are handed on to every rank.

    Args:
        patience: seconds after which ranks none of which does anything are ended.

    Raises:
        UserError: a patience that is no finite number of seconds, at least 1.
    """
    if not 1 <= patience < math.inf:
        raise UserError(f"{patience=} must be a finite number of seconds, at least 1")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ldm-")))
        ranks: list[Rank] = []
        stack.callback(lambda: [rank.kill() for rank in ranks])
        received = _receive(stack)
        port = _free_port()
        for number in range(count):  # one by one: those that have started are ended if another can't be
            ranks += [_start(command, number=number, count=count, port=port, folder=folder)]
        failed = _watch(ranks, received, patience=patience)
        if failed is None:
            return 1, _standstill(ranks, patience=patience)
        return _verdict(failed, ranks)


def follow_watcher() -> None:
    """Binds this process to the watcher that started it, if one did: it is killed when that dies (Linux)."""
    watcher = int(os.environ.get(WATCHER, 0))
    if not watcher:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != watcher:  # it died before this line
        os._exit(LOST)
    tell_place(Path(os.environ[PLACE]))


def _start(command: Sequence[str], *, number: int, count: int, port: int, folder: Path) -> Rank:
    errors, place = folder / f"errors{number}" if number else None, folder / f"place{number}"
    with ExitStack() as stack:
        stream = stack.enter_context(errors.open("wb")) if errors else None
        process = subprocess.Popen(
            list(command),
            env=os.environ | _variables(number=number, count=count, port=port) | {PLACE: str(place)},
            stdout=stream and subprocess.DEVNULL,
            stderr=stream,
            process_group=0,  # the terminal's Ctrl-C reaches the watcher alone, which hands it on once
        )
    return Rank(number=number, process=process, errors=errors, place=place, pulse=Pulse(pid=process.pid))


def _variables(*, number: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would set for a rank, and what keeps ranks of one machine out of each other's way."""
    threads = max(1, len(os.sched_getaffinity(0)) // count) if sys.platform == "linux" else 1
    loopback = {"linux": "lo", "darwin": "lo0"}.get(sys.platform, "")
    defaults = {"OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": loopback}
    values = {name: os.environ.get(name, value) for name, value in defaults.items()} | {
        "RANK": number,
        "LOCAL_RANK": number,
        "GROUP_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "ldm",
        WATCHER: os.getpid(),
    }
    return {name: str(value) for name, value in values.items()}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _receive(stack: ExitStack) -> deque[int]:
    """A queue of the signals that are to be handed on; they come in until the stack closes."""
    received = deque[int]()

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in FORWARDED:
        stack.callback(signal.signal, number, signal.signal(number, handler))
    return received


def _watch(ranks: Sequence[Rank], received: deque[int], *, patience: float) -> list[Rank] | None:
    """Hands signals on and waits for all ranks, or for a while once one has failed or a signal has come.

    Returns those that failed, the first one first; None if nothing has been done by any for too long.
    """
    running, failed, deadline, stopping = list(ranks), list[Rank](), float("inf"), False
    while running and time.monotonic() < deadline:
        while received:
            stopping, deadline = True, min(deadline, time.monotonic() + STOPPING)
            _hand_on(received.popleft(), running)
        for rank in running:
            rank.pulse.feel()
        if not failed and time.monotonic() - max(rank.pulse.last for rank in ranks) > patience:
            return None
        for rank in [rank for rank in running if rank.process.poll() is not None]:
            running.remove(rank)
            rank.pulse.last = time.monotonic()
            if rank.status:
                failed.append(rank)
                saving = stopping and rank.status > 0  # what a signal kills saves nothing
                deadline = min(deadline, time.monotonic() + (STOPPING if saving else GRACE))
        time.sleep(POLL)
    return failed


def _hand_on(number: int, ranks: Iterable[Rank]) -> None:
    for rank in ranks:
        rank.process.send_signal(number)  # none is sent to one that has ended


def _verdict(failed: Sequence[Rank], ranks: Sequence[Rank]) -> tuple[int, str]:
    """The exit status, and the first cause if no rank has told it on our standard error."""
    if not failed:
        return 0, ""
    causes = [
        *(rank for rank in failed if rank.status != LOST),
        *(rank for rank in ranks if rank.status == 0),
    ]
    first = next(iter(causes), max(failed, key=lambda rank: rank.number))  # whose words are not yet told
    if any(rank.number == 0 and rank.status == 1 for rank in failed) and first.status == 1:
        return 1, ""  # all met it, and the first rank said so
    return 1, f"{first.fate()}; the other ranks were ended; {AGAIN}"


def _standstill(ranks: Sequence[Rank], *, patience: float) -> str:
    found = places([rank.pid for rank in ranks], [rank.place for rank in ranks])
    each = [
        f"rank {rank.number} (process {rank.pid}) {where}" for rank, where in zip(ranks, found, strict=True)
    ]
    return f"no rank has done anything for {patience:g} s: {', '.join(each)}; they were ended; {AGAIN}"
