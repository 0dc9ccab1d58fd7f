"""`metrics.jsonl`: what a run logged, one line a step, always written, whatever other logger is on."""

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ldm.io.curves import read_lines
from ldm.io.writing import append, write

ENDING = 4  # lines of one step: what was trained and what was validated


class RunLogger(Logger):
    """A logger of one run, whose config is in the run directory already.

    Args:
        name: what Lightning calls it.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Logs none: readers find the config in the run directory."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs what there is beside Lightning's own count of epochs, which a stream of batches has not."""
        if values := {name: value for name, value in metrics.items() if name != "epoch"}:
            self.log_values(values, step)

    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        """Logs the numbers of a step, on the first rank."""
        raise NotImplementedError


class MetricsLog(RunLogger):
    """Appends `{"step": k, name: value, ...}` to a file; a resumed run cuts what lies after its state.

    A validation at the state's own step is made again, and its line stays as it was.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("jsonl")
        self.path = Path(path)
        self._kept: list[tuple[int, set[str]]] = []  # step and names of the lines that a rewind left

    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        if (step, {*values}) not in self._kept:
            append(self.path, json.dumps({"step": step, **values}) + "\n")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will take again, and damaged ones, which it counts."""
        if not self.path.exists():
            return
        lines, damaged = read_lines(self.path)
        if damaged:
            lines_are = "line is" if damaged == 1 else "lines are"
            print(f"{self.path}: {damaged} damaged {lines_are} passed over", flush=True)
        kept = [line for line in lines if line.step < step]
        self._kept = [(line.step, {*line.values}) for line in kept[-ENDING:]]
        write(self.path, "".join(f"{line.text}\n" for line in kept))
