"""What each command costs before it does anything: `--help`, and eight pictures of `ldm.sample` from cold.

    python -m benchmarks.import_time [--rounds 3] [--top 3] [--only ldm.sample ...]

Prints for each verb the least wall and processor seconds of its `--help`, the modules that it imports, and
the slowest imports with their own time. The last row generates eight pictures of the shipped model, with the
most memory that was resident; the row before it is torch alone. The limit of `--help` is half a second on an
idle machine.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from ldm.evaluation.report import markdown_table

PREPARED = ("emoji", "flickr30k", "folder", "latents", "shapes", "verify", "webdataset", "words")
VERBS = (
    *(f"ldm.{name}" for name in ("train", "sample", "evaluate", "export", "serve", "preflight")),
    *(f"data_prep.{name}" for name in PREPARED),
    *(f"experiments.{name}" for name in ("compare", "records", "report", "sweeps")),
)
FLOOR = "import torch"  # below which no picture is generated
EIGHT = 'prompts=["red apple","a cat","a dog","a tree","a car","the sun","the moon","a star"]'
LINE = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \|\s+(\S+)")  # own microseconds, all, module


class Cost(NamedTuple):
    """What a process cost: seconds, peak memory in bytes, and its imports by their own seconds."""

    wall: float
    processor: float
    memory: int
    imports: dict[str, float]


def cost_of(arguments: Sequence[str]) -> Cost:
    """A Python process with these arguments. Raises RuntimeError where it fails."""
    with tempfile.TemporaryFile() as errors:
        began = perf_counter()
        null = (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)
        command = [sys.executable, "-X", "importtime", *arguments]
        actions = [null, (os.POSIX_SPAWN_DUP2, errors.fileno(), 2)]
        pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
        _, status, used = os.wait4(pid, 0)
        wall = perf_counter() - began
        errors.seek(0)
        text = errors.read().decode(errors="replace")
    if status:
        lines = [line for line in text.splitlines() if not LINE.match(line)]
        raise RuntimeError(f"{' '.join(arguments)} has failed: {lines[-1:]}")
    imports = {name: int(own) / 1e6 for own, _, name in LINE.findall(text)}
    return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, imports)


def row(name: str, costs: Sequence[Cost], *, top: int) -> list[str]:
    """The table's row of a command that was run several times."""
    best = min(costs, key=lambda cost: cost.processor)
    slow = sorted(best.imports, key=lambda each: -best.imports[each])[:top]
    wall = min(cost.wall for cost in costs)
    memory = f"{max(cost.memory for cost in costs) / 1e6:.0f} MB"
    shown = ", ".join(f"{each} {best.imports[each]:.2f}" for each in slow)
    return [name, f"{wall:.2f}", f"{best.processor:.2f}", memory, f"{len(best.imports):,}", shown]


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--top", type=int, default=3, help="imports that are named")
    parser.add_argument("--only", nargs="+", default=[*VERBS, FLOOR, "eight pictures"], help="verbs")
    options = parser.parse_args()
    rows = []
    for verb in options.only:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["-m", verb, "--help"]
            if verb == "eight pictures":
                out = Path(folder) / "samples"
                arguments = ["-m", "ldm.sample", EIGHT, f"out={out}", "overwrite=true"]
            elif verb == FLOOR:
                arguments = ["-c", verb]
            rows.append(row(verb, [cost_of(arguments) for _ in range(options.rounds)], top=options.top))
    titles = ["command", "wall, s", "processor, s", "peak memory", "modules", "slowest imports, s"]
    print(markdown_table(titles, rows))


if __name__ == "__main__":
    main()
