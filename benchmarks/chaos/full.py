"""Saves on a disk that is full, in a mount namespace of its own: what `disk.full` starts with `unshare`."""

import random
import subprocess
import sys
from pathlib import Path

from benchmarks.chaos import saver
from benchmarks.chaos.disk import SENTENCE
from ldm.checkpoints.training_state import save_state


def main(folder: Path, tries: int) -> None:
    """Prints a line for each thing that is wrong."""
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
