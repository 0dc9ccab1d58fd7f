"""Disks that are full, that may not be written to, and that give back other bytes than they were given."""

import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.chaos import saver
from benchmarks.chaos.verdict import Loss
from benchmarks.harness import Fault
from ldm.checkpoints.training_state import MANIFEST, STATE, save_state, states

NOBODY = 65534
SENTENCE = "make room, or make the folder writable"


def refused(root: Path, step: int, hinder: Callable[[], None]) -> list[str]:
    """What is wrong with the answer to a save that can't be, in a process where `hinder` was called."""
    reading, writing = os.pipe()

    def act() -> None:
        hinder()
        try:
            save_state(root, step, saver.write(step), keep=2)
        except OSError as error:
            os.write(writing, str(error).encode())

    pid = saver.child(act)
    os.close(writing)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    says = os.read(reading, 4096).decode()
    os.close(reading)
    wrongs = saver.wrong(root, step - 1)[1] + saver.untidy(root)
    return wrongs + [f"status {status}, {says!r}"] * (status != 0 or SENTENCE not in says)


def limited(folder: Path, tries: int) -> Loss:
    """Files that can't grow beyond a number of bytes, as with a quota."""
    draw, root, failures = random.Random(0), folder / "states", []
    for step in range(1, 2 * tries, 2):
        save_state(root, step, saver.write(step), keep=2)
        limits = (draw.randrange(saver.SIZE),) * 2
        failures += refused(root, step + 1, partial(resource.setrlimit, resource.RLIMIT_FSIZE, limits))
    return Loss(tries=tries, failures=failures, lost=1, interval=1)


def read_only(folder: Path, tries: int) -> Loss:
    """A folder that may be read and not written to; root is made nobody first, whom that would not stop."""
    root, failures = folder / "states", []
    folder.chmod(0o755)

    def hinder() -> None:
        if os.geteuid() == 0:
            os.seteuid(NOBODY)

    for step in range(1, 2 * tries, 2):
        save_state(root, step, saver.write(step), keep=2)
        root.chmod(0o555)
        failures += refused(root, step + 1, hinder)
        root.chmod(0o755)
    return Loss(tries=tries, failures=failures, lost=1, interval=1)


def full(folder: Path, tries: int) -> Loss:
    """Disks of their own, in memory, that have room for between one and three states."""
    apart = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*apart, sys.executable, "-m", "benchmarks.chaos.disk", str(folder), str(tries)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    failures = done.stdout.splitlines()
    if done.returncode:
        failures.append(f"unshare: {' '.join(done.stderr.split())[-200:]}")
    return Loss(tries=tries, failures=failures, lost=1, interval=1)


def fill(folder: Path, tries: int) -> None:
    """Prints a line for each thing that is wrong; in a mount namespace of its own, which `full` starts."""
    draw = random.Random(0)
    for number in range(tries):
        disk = folder / f"disk{number}"
        disk.mkdir()
        size = int(saver.SIZE * draw.uniform(1.2, 2.9))
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
        for line in filled(disk / "states"):
            print(f"disk of {size} bytes: {line}")


def filled(root: Path) -> list[str]:
    """Saves until the disk is full; what is wrong then, and once there is room again."""
    for step in range(1, 4):
        try:
            save_state(root, step, saver.write(step), keep=3)
        except OSError as error:
            wrongs = saver.wrong(root, step - 1)[1] + saver.untidy(root)
            return wrongs + [f"no sentence: {error}"] * (SENTENCE not in str(error))
    return ["it was never full"]


def damage(change: Callable[[Path, random.Random], None], folder: Path, tries: int) -> Loss:
    """The newest of two states is changed: the one before it must be taken, with its own bytes."""
    draw, failures = random.Random(0), []
    root = folder / "states"
    for number in range(tries):
        for step in (2 * number + 1, 2 * number + 2):
            save_state(root, step, saver.write(step), keep=2)
        newest = states(root)[-1]
        change(newest / (STATE if draw.random() < 0.5 else MANIFEST), draw)
        step, wrongs = saver.wrong(root, 2 * number + 1)
        failures += wrongs + [f"damaged step {step} was taken"] * (step != 2 * number + 1)
    return Loss(tries=tries, failures=failures, lost=1, interval=1)


def flip(path: Path, draw: random.Random) -> None:
    """One bit, anywhere."""
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def cut(path: Path, draw: random.Random) -> None:
    """The end of it, from anywhere."""
    os.truncate(path, draw.randrange(path.stat().st_size))


FAULTS = [
    Fault(area="disk", name="no more bytes for a file", tries=(50, 3), run=limited),
    Fault(area="disk", name="disk full", tries=(20, 2), run=full),
    Fault(area="disk", name="folder read-only", tries=(20, 2), run=read_only),
    Fault(area="disk", name="one bit flipped", tries=(200, 8), run=partial(damage, flip)),
    Fault(area="disk", name="file cut", tries=(50, 4), run=partial(damage, cut)),
]

if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]))
