"""`metrics.jsonl`: every number that a run logged, one line per step; written whatever other logger is on."""

import json
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.io.curves import read_lines
from ldm.io.writing import append, write

ENDING = 4  # lines at the end of a log that may be of the checkpoint's step: training and validation


class RunLogger(Logger):
    """A logger of one run; it logs no hyperparameters, since the run directory has the config.

    `name` is what Lightning and messages call it.
    """

    name, version = "", ""  # type: ignore[assignment]  # properties of Lightning's class

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Logs nothing."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs all numbers but Lightning's `epoch`, which means nothing for an endless stream of batches."""
        if values := {name: value for name, value in metrics.items() if name != "epoch"}:
            self.log_values(values, step)

    @abstractmethod
    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        """Logs the numbers of a step; called on the first rank only."""


class MetricsLog(RunLogger):
    """Appends `{"step": k, name: value, ...}` to a file.

    When a run resumes, `rewind` drops the lines after its checkpoint. The validation at the checkpoint's own
    step is then repeated, and its line is not written twice.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("jsonl")
        self.path = Path(path)
        self._kept: list[tuple[int, set[str]]] = []  # step and names of the last lines that a rewind left

    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        """Appends a line, unless it repeats one that a rewind has left."""
        if (step, {*values}) not in self._kept:
            append(self.path, json.dumps({"step": step, **values}) + "\n")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the lines from a step on, and damaged ones, whose number it prints."""
        if not self.path.exists():
            return
        lines, damaged = read_lines(self.path)
        if damaged:
            are = "line is" if damaged == 1 else "lines are"
            print(f"{self.path}: {damaged} damaged {are} passed over", flush=True)
        kept = [line for line in lines if line.step < step]
        self._kept = [(line.step, {*line.values}) for line in kept[-ENDING:]]
        write(self.path, "".join(f"{line.text}\n" for line in kept))
