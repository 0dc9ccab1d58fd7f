"""A sweep as one table and one figure: `python -m experiments.sweeps folder=runs/sweep/<name>`.

A training's numbers are the last that it logged at a validation, an evaluation's are its results.
"""

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from data_prep.command_line import command_line, option
from experiments.sweep_figure import draw_sweep, is_number
from experiments.tables import Table
from hydra_plugins.ldm_sweeps.points import Point, newest, numbers, read_points
from ldm import UserError
from ldm.evaluation.report import csv_text, markdown_table
from ldm.evaluation.results import read_results
from ldm.io.reading import read_json
from ldm.io.writing import write

HOME = Path(__file__).parent / "sweep"
SEED = "seed"  # of a training
PLACES = ("data.root=", "runs=", "out=", "hydra.")  # arguments that only one machine needs


@dataclass(kw_only=True)
class Options:
    """Which sweep is read, what is shown, and where it goes."""

    folder: str = option("", "Folder of the sweep; points that have not ended are shown as such.")
    out: str = option("", "Folder for the table and the figure; by default experiments/sweep/<name>.")
    metrics: str = option("", "Metrics to show, such as val/loss,val/psnr; by default all.")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a point."""

    swept: Mapping[str, str]  # value by key, as typed
    state: str  # "finished" or "not finished"
    numbers: Mapping[str, float]  # by name
    commit: str  # of the code that ran
    ruler: str  # what makes numbers of an evaluation comparable; empty for a training


def main(options: Options) -> None:
    """Writes the table and the figure.

    Raises UserError for no folder, no sweep there, no numbers yet, or numbers that can't be compared.
    """
    if not options.folder:
        raise UserError("folder= is empty: name the sweep, as folder=runs/sweep/learning_rate")
    folder = Path(options.folder)
    points = read_points(folder)
    outcomes = sorted(map(outcome, points), key=place)
    names = chosen(outcomes, options.metrics.split(",") if options.metrics else [])
    out = Path(options.out) if options.out else HOME / folder.name
    write_page(out, folder, outcomes, names, command=shared_command(points))
    finished = sum(each.state == "finished" for each in outcomes)
    print(f"{out / 'README.md'}: {len(outcomes)} points, {finished} of them finished")


def outcome(point: Point) -> Outcome:
    """The result that a point's files hold."""
    ruler, commit = "", None
    if point.results.is_file():
        document = read_results(point.results)
        ruler, commit = document["protocol"]["ruler"], document["provenance"]["commit"]
    else:
        for record in newest(point, "run.json"):
            commit = read_json(record)["commit"]
    return Outcome(
        swept=point.swept,
        state="finished" if point.finished else "not finished",
        numbers=numbers(point),
        commit="unknown" if commit is None else commit[:10],
        ruler=ruler,
    )


def chosen(outcomes: Sequence[Outcome], asked: Sequence[str]) -> list[str]:
    """Names of the numbers to show: those asked for, or all.

    Raises UserError for a number that no point has, none at all, or numbers taken under several protocols.
    """
    known = sorted({name for each in outcomes for name in each.numbers})
    for name in asked:
        if name not in known:
            raise UserError(f"metrics: no point has a {name}; there are: {', '.join(known) or 'none yet'}")
    if not known:
        raise UserError("no point of the sweep has a number yet: a training logs them at its validations")
    rulers = {each.ruler for each in outcomes if each.numbers}
    if len(rulers) > 1:
        raise UserError(
            f"the points were measured under {len(rulers)} protocols and can't be compared: sweep under one"
        )
    return list(asked) or known


def place(point: Outcome) -> list[tuple[bool, float, str]]:
    """Where a point stands in the table: by what it sets, numbers by size before words by letter."""
    settings = point.swept.values()
    return [(False, float(text), "") if is_number(text) else (True, 0.0, text) for text in settings]


def shared_command(points: Sequence[Point]) -> str:
    """What the commands of all points have in common."""
    first, *others = (point.command for point in points)
    shared = [word for word in first[1:] if all(word in other for other in others)]
    return shlex.join(["python", "-m", first[0], *(word for word in shared if not word.startswith(PLACES))])


def write_page(
    out: Path, folder: Path, outcomes: Sequence[Outcome], names: Sequence[str], *, command: str
) -> None:
    """README.md, table.csv and figure.png."""
    table = sweep_table(folder.name, outcomes, names)
    write(out / "table.csv", csv_text([table.header, *table.rows]))
    picture = draw_sweep(
        folder.name, [(each.swept, each.numbers) for each in outcomes], names, out / "figure.png"
    )
    commits = ", ".join(unique(each.commit for each in outcomes))
    parts = [
        f"# Sweep: {folder.name}",
        f"{len(outcomes)} points of `{command}`, at commit {commits}. "
        f"Made by `python -m experiments.sweeps folder={folder}`.",
        table.markdown(),
        *seeds_section(outcomes, names),
        f"![{folder.name}]({picture.name})",
    ]
    write(out / "README.md", "\n\n".join(parts) + "\n")


def sweep_table(name: str, outcomes: Sequence[Outcome], names: Sequence[str]) -> Table:
    """One row per point: its settings, its numbers, and whether it has finished."""
    keys = unique(key for each in outcomes for key in each.swept)
    rows = [
        [
            *(each.swept.get(key, "") for key in keys),
            *(_cell(each.numbers.get(metric)) for metric in names),
            each.state,
        ]
        for each in outcomes
    ]
    return Table(
        name=f"sweep/{name}", header=[*(key.lstrip("+") for key in keys), *names, "state"], rows=rows
    )


def seeds_section(outcomes: Sequence[Outcome], names: Sequence[str]) -> list[str]:
    """A table of means and standard deviations over the seeds of each setting; empty if none has several."""
    groups: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for each in outcomes:
        setting = tuple((key, value) for key, value in each.swept.items() if key != SEED)
        groups.setdefault(setting, []).append(each)
    rows = []
    for setting, own in groups.items():
        found = [[each.numbers[name] for each in own if name in each.numbers] for name in names]
        if max(map(len, found)) > 1:
            label = ", ".join(f"{key.lstrip('+')}={value}" for key, value in setting) or "all"
            rows.append([label, *map(_spread, found)])
    if not rows or not any(SEED in each.swept for each in outcomes):
        return []
    return ["Mean ± standard deviation between training seeds:", markdown_table(("setting", *names), rows)]


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(map(_cell, values))
    return f"{mean(values):.4g} ± {stdev(values):.2g} ({len(values)} training seeds)"


def unique(items: Iterable[Any]) -> list[Any]:
    """Each item once, in the order in which they come."""
    return list(dict.fromkeys(items))


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:.4g}"


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
