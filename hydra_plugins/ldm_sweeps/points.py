"""Points of a sweep: each is a command with a folder of its own, and resumes where it stopped."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from ldm import UserError
from ldm.config import quoted
from ldm.io.curves import read_curves
from ldm.io.reading import read_json
from ldm.io.writing import write

RECORD = "point.json"
OUTPUT = "output.txt"
PLACES = {"runs": "{}", "out": "{}/evaluation"}  # where a command writes: its key, and the value
SEEDS = "seeds"  # key of conf/sweep/seeds.yaml that the sweep alone reads: a point is the same for any number


@dataclass(frozen=True, kw_only=True)
class Point:
    """One setting of a sweep."""

    folder: Path  # holds everything that the point writes; its name says the setting
    swept: dict[str, str]  # value by key, of the keys that the sweep varies, as they are typed
    command: list[str]  # the module, then its arguments

    @property
    def label(self) -> str:
        """What tables and messages call it."""
        return self.folder.name

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: a training has its bundle, an evaluation its results."""
        return any(self.folder.glob("*/*/bundle/config.yaml")) or self.results.is_file()

    @property
    def results(self) -> Path:
        """Where an evaluation's results are, if the point is one."""
        return self.folder / "evaluation" / "results.json"

    def save(self) -> None:
        """Writes the point's record; raises UserError where another command has finished in its folder."""
        record = self.folder / RECORD
        if self.finished and record.is_file() and (other := read_point(record).command) != self.command:
            differing = sorted(set(other) ^ set(self.command))
            raise UserError(
                f"{self.folder} is of a finished point with another command ({', '.join(differing)}): choose "
                "another folder with hydra.sweep.dir=, or remove this one"
            )
        text = json.dumps({"swept": self.swept, "command": self.command}, indent=2)
        write(record, text + "\n", below=self.folder.parent)


def points_of(config: DictConfig, job_overrides: Iterable[Sequence[str]]) -> list[Point]:
    """Points of a batch of jobs, their records written.

    Args:
        config: of the multirun; it has the command, and with `hydra.sweep.dir` the folder of the sweep.
        job_overrides: arguments of each job. A key that has one value for all jobs is not part of the label.

    Raises UserError for two jobs with one label, a command that writes to no folder that can be chosen, a
    folder that holds what another command has finished.
    """
    name = config.hydra.job.config_name
    key = next((key for key in PLACES if key in config), None)
    if key is None:
        raise UserError(f"{name} can't be swept: it has neither of the keys {', '.join(PLACES)}")
    alike = keys_of_one_value(config)
    check_seeds(config, alike)
    jobs = [[each for each in overrides if not each.startswith(f"{SEEDS}=")] for overrides in job_overrides]
    pairs = [dict(override.split("=", 1) for override in overrides) for overrides in jobs]
    varied = [{key: value for key, value in each.items() if key not in alike} for each in pairs]
    points = []
    for overrides, swept, label in zip(jobs, varied, labels_of(varied), strict=True):
        folder = Path(config.hydra.sweep.dir) / label
        place = quoted(f"{key}={PLACES[key].format(folder)}")
        command = [f"ldm.{name}", *overrides, place, "hydra.mode=RUN"]
        points.append(Point(folder=folder, swept=swept, command=command))
    for point in points:
        point.save()
    return points


def check_seeds(config: DictConfig, alike: set[str]) -> None:
    """Raises UserError for `seeds` below 1, or a `seed` beside it, with which all trainings would be one."""
    if config.get(SEEDS, 1) < 1:
        raise UserError(f"seeds={config[SEEDS]} must be at least 1: it is the number of trainings")
    if SEEDS in config and "seed" in alike:
        raise UserError("seeds= chooses the seeds 0, 1, ...: leave seed= out, or list some, as seed=7,8,9")


def keys_of_one_value(config: DictConfig) -> set[str]:
    """Keys that the sweep sets, on the command line or in its `params`, to one value for all points."""
    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    last = {each.get_key_element(): each for each in parsed([*params, *config.hydra.overrides.task])}
    return {key for key, override in last.items() if not override.is_sweep_override()}


def parsed(arguments: Iterable[str]) -> list[Override]:
    """Overrides of a command line."""
    return OverridesParser.create().parse_overrides(list(arguments))


def written(override: Override) -> str:
    """An override in the form in which sweepers hand it on."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


def labels_of(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the points' folders; where two settings would have one name, a hash of each is added.

    Raises UserError where two points have the same settings.
    """
    counts = Counter(map(label_of, points))
    labels = []
    for swept in points:
        label = label_of(swept)
        digest = hashlib.sha256(repr(swept).encode()).hexdigest()[:8]
        labels.append(label if counts[label] == 1 else f"{label}_{digest}")
    label, count = Counter(labels).most_common(1)[0]
    if count > 1:
        raise UserError(f"{count} points of the sweep are called {label}: give each value once")
    return labels


def label_of(swept: Mapping[str, Any]) -> str:
    """Name of a point's folder: its settings, in letters that need no quotes anywhere."""
    text = "__".join(f"{key.lstrip('+')}_{value}" for key, value in swept.items())
    return re.sub(r"[^\w.-]+", "_", text)[:200] or "point"


def read_points(folder: Path) -> list[Point]:
    """Points that were started below a folder, in the order of their labels; UserError if there is none."""
    points = [read_point(path) for path in sorted(folder.glob(f"*/{RECORD}"))]
    if not points:
        raise UserError(f"there is no sweep at {folder}: start one with python -m ldm.train +sweep=<name>")
    return points


def read_point(path: Path) -> Point:
    """The point of a record; UserError if it can't be read."""
    try:
        record = read_json(path)
        return Point(folder=path.parent, swept=record["swept"], command=record["command"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a point's record ({error!r}): start the sweep again") from error


def numbers(point: Point) -> dict[str, float]:
    """Numbers of a point by name: an evaluation's results, or what a training logged last."""
    if point.results.is_file():
        from ldm.evaluation.results import read_results, values  # Hydra imports this file in every command

        return values(read_results(point.results))
    return {
        name: curve[-1][1]
        for log in newest(point, "metrics.jsonl")
        for name, curve in read_curves(log).items()
        if name.startswith("val/")
    }


def newest(point: Point, name: str) -> list[Path]:
    """The file of that name in the newest run of a point, if there is one."""
    return sorted(point.folder.glob(f"*/*/{name}"))[-1:]
