"""Shares of right pictures against minutes and guidance: `python -m experiments.shapes.curves`.

It reads what two sweeps of `ldm.evaluate` wrote: one over the bundles of a training's checkpoints, one over
guidance scales. README.md has the commands.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.io.pictures import save_figure
from ldm.io.reading import read_yaml

METRIC = "composition_everything"
SPEED = "train/samples_per_second"
SETS = {"seen": "C0", "held_out": "C1", "long": "C2"}  # and the colours of their lines
Row = Mapping[str, str]


@dataclass(kw_only=True)
class Options:
    """Where the sweeps are, and the figure."""

    minutes: str = option("runs/evaluation/shapes_minutes", "Sweep over bundles named step=N.")
    scales: str = option("runs/evaluation/shapes_scales", "Sweep over guidance scales.")
    run: str = option("runs/shapes", "Folder of the runs; the newest one tells how long a step took.")
    out: str = option("experiments/shapes/curves.png", "The figure.")


def main(options: Options) -> None:
    """Draws both curves.

    Raises:
        UserError: a sweep or a run that isn't there.
    """
    each = minutes_a_step(Path(options.run))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    draw(left, rows_of(Path(options.minutes)), lambda row: each * step_of(row["bundle"]))
    draw(right, rows_of(Path(options.scales)), lambda row: float(row["scale"]))
    left.set_xlabel("minutes of training")
    right.set_xlabel("guidance scale")
    left.set_ylabel("share of pictures in which all is right")
    left.set_ylim(0, 1)
    left.legend(loc="upper left")
    save_figure(figure, Path(options.out), dpi=110)
    print(options.out)


def draw(axes: Axes, rows: Iterable[Row], x: Callable[[Row], float]) -> None:
    """A line for each set of prompts, in its Wilson interval."""
    rows = list(rows)
    for name, colour in SETS.items():
        mine = sorted((row for row in rows if row["set"] == name), key=x)
        share, low, high = (
            [float(row["value"]) for row in mine if row["metric"] == METRIC + end]
            for end in ("", "_low", "_high")
        )
        places = [x(row) for row in mine if row["metric"] == METRIC]
        axes.plot(places, share, color=colour, marker=".", label=name.replace("_", " "))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.grid(alpha=0.3)


def rows_of(folder: Path) -> list[Row]:
    """The lines of a sweep's table.

    Raises:
        UserError: there is none.
    """
    if not (folder / "sweep.csv").is_file():
        raise UserError(f"{folder}/sweep.csv is missing: experiments/shapes/README.md has the command")
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def step_of(bundle: str) -> int:
    """The step of a checkpoint's bundle, which its name ends with."""
    found = re.search(r"step=(\d+)", bundle)
    if found is None:
        raise UserError(f"{bundle} does not say its step: name the bundles step=<N>")
    return int(found[1])


def minutes_a_step(runs: Path) -> float:
    """How long a step of the newest run took, from the samples a second that it logged.

    Raises:
        UserError: there is no such run.
    """
    logs = sorted(runs.glob("*/metrics.jsonl"))
    if not logs:
        raise UserError(f"run={runs} holds no run: train one with python -m ldm.train +experiment=shapes")
    lines = [json.loads(line) for line in logs[-1].read_text(encoding="utf-8").splitlines()]
    folder = logs[-1].parent
    ranks = json.loads((folder / "run.json").read_text(encoding="utf-8"))["inputs"]["ranks"]
    batch = read_yaml(folder / "config.yaml")["batch_size"] * ranks  # as the logged speed
    seconds = [batch / line[SPEED] for line in lines if SPEED in line]
    return fmean(seconds) / 60


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
