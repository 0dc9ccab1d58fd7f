"""A launcher that runs the points of a sweep on this machine, each as a process group of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hydra_plugins.ldm_sweeps.launching import PointLauncher
from hydra_plugins.ldm_sweeps.points import OUTPUT, Point
from ldm import UserError
from ldm.io.writing import appending

POLL = 0.2  # seconds between two looks at the processes
GRACE = 60.0  # seconds that stopped processes have to save


class LocalLauncher(PointLauncher):
    """Points as processes, a few at a time; one that fails leaves the others alone.

    Args:
        jobs: how many run at once.
        devices: values of CUDA_VISIBLE_DEVICES, one a job: two trainings never share a GPU.

    Raises UserError for fewer than one job, or another number of devices than jobs.
    """

    def __init__(self, *, jobs: int, devices: Sequence[Any] | None = None) -> None:
        if jobs < 1:
            raise UserError(f"hydra.launcher.jobs={jobs} must be at least 1")
        if devices is not None and len(devices) != jobs:
            raise UserError(
                f"hydra.launcher.devices names {len(devices)} devices for hydra.launcher.jobs={jobs}: "
                "name one a job"
            )
        self.slots = [{}] * jobs if devices is None else [{"CUDA_VISIBLE_DEVICES": str(d)} for d in devices]

    def run(self, points: Sequence[Point], folder: Path, *, total: int) -> str:
        """Runs the points here, at most one a slot, and waits for them."""
        print(f"{folder}: {len(points)} of {total} points to run", flush=True)
        run_all(points, self.slots)
        return f"their output is in {OUTPUT} in their folders"


def run_all(points: Sequence[Point], slots: Sequence[dict[str, str]]) -> None:
    """Runs the points, at most one a slot; when it is interrupted, so are they, and may save."""
    waiting, free = list(points), list(range(len(slots)))
    running: dict[int, tuple[subprocess.Popen, Point]] = {}
    with terminable():
        try:
            while waiting or running:
                while waiting and free:
                    slot, point = free.pop(0), waiting.pop(0)
                    running[slot] = (start(point, slots[slot], share=len(slots)), point)
                for slot, (process, point) in list(running.items()):
                    if process.poll() is not None:
                        print(f"{point.label}: {'finished' if point.finished else 'stopped'}", flush=True)
                        del running[slot]
                        free.append(slot)
                time.sleep(POLL)
        finally:
            stop([process for process, _ in running.values()])


def start(point: Point, environment: dict[str, str], *, share: int) -> subprocess.Popen:
    """A point's process, the leader of its own session; what it prints goes to a file in its folder.

    Args:
        share: how many points share the processor; each gets that part of its threads.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // share)
    with appending(point.folder / OUTPUT, below=point.folder.parent) as output:
        return subprocess.Popen(
            [sys.executable, "-m", *point.command],
            env={"OMP_NUM_THREADS": str(threads)} | os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def stop(processes: Sequence[subprocess.Popen], *, grace: float = GRACE) -> None:
    """Ends process groups: SIGTERM, on which a training saves, and SIGKILL for what is left of them."""
    for process in processes:
        send(process, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        send(process, signal.SIGKILL)
        process.wait()


def send(process: subprocess.Popen, number: int) -> None:
    """Sends a signal to all that is left of a process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextmanager
def terminable() -> Iterator[None]:
    """While it lasts, SIGTERM is a KeyboardInterrupt, as ctrl-C is by Python's own handler."""
    signals = (signal.SIGTERM, signal.SIGINT)  # SIGINT, too: a shell lets background commands ignore it
    before = {number: signal.signal(number, signal.default_int_handler) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
