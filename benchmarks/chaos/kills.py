"""SIGKILL while states are saved: at any moment, and inside a save."""

import os
import random
import time
from functools import partial
from pathlib import Path

from benchmarks.chaos.saver import BEGUN, DONE, end, start, wrong
from benchmarks.chaos.verdict import Loss
from benchmarks.harness import Fault
from ldm.checkpoints.training_state import save_state

SPAN = 5.0  # a kill at any moment comes within this many saves and the naps between them


def kill(folder: Path, tries: int, *, inside: bool) -> Loss:
    """Kills one saver after the other; each resumes from what the one before it left.

    Args:
        folder: an empty one.
        tries: kills that count.
        inside: aim at saves, and count only the kills that met one.
    """
    root, draw, failures = folder / "states", random.Random(inside), []
    duration = seconds_of_a_save(folder / "first")
    number = met = step = lost = 0
    while (met if inside else number) < tries and number < 10 * tries:
        pid, reading = start(root, step + 1, nap=2 * duration)
        told = _wait_for_save(reading, draw) if inside else b""
        time.sleep(draw.uniform(0, duration if inside else SPAN * 3 * duration))
        told += end(pid, reading)
        saved, begun = step + told.count(DONE), step + told.count(BEGUN)
        number, met = number + 1, met + (begun > saved)
        step, wrongs = wrong(root, saved)
        failures += [f"kill {number}: {sentence}" for sentence in wrongs]
        lost = max(lost, begun - step)
    says = f"{met} inside a save of {1000 * duration:.1f} ms, {step} steps saved"
    return Loss(tries=met if inside else number, failures=failures, lost=lost, interval=1, says=says)


def seconds_of_a_save(root: Path) -> float:
    """How long a save takes in peace, at the median of nine."""
    times = []
    for step in range(1, 10):
        began = time.perf_counter()
        save_state(root, step, lambda path: path.write_bytes(bytes(400_000)), keep=2)
        times.append(time.perf_counter() - began)
    return sorted(times)[4]


def _wait_for_save(reading: int, draw: random.Random) -> bytes:
    """Waits until the first, second or third save has begun; returns what was told meanwhile."""
    told, begins = b"", draw.randrange(1, 4)
    while told.count(BEGUN) < begins and (piece := os.read(reading, 1)):
        told += piece
    return told


FAULTS = [
    Fault(area="saves", name="SIGKILL at any moment", tries=(200, 6), run=partial(kill, inside=False)),
    Fault(area="saves", name="SIGKILL inside a save", tries=(120, 6), run=partial(kill, inside=True)),
]
