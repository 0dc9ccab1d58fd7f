"""`metrics.jsonl`: what a run logged, one line a step, always written, whatever other logger is on."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

ENDING = 4  # lines of one step: what was trained and what was validated


class MetricsLog(Logger):
    """Appends `{"step": k, name: value, ...}` to a file; a resumed run cuts what lies after its state.

    A validation at the state's own step is made again, and its line stays as it was.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._kept: list[tuple[int, set[str]]] = []  # step and names of the lines that a rewind left

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run directory holds the config already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        if values and (step, {"step", *values}) not in self._kept:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"step": step, **values}) + "\n")

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drops the lines of steps that a resumed run will take again."""
        if not self.path.exists():
            return
        lines = [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        kept = [line for line in lines if json.loads(line)["step"] < step]
        self._kept = [(record["step"], set(record)) for record in map(json.loads, kept[-ENDING:])]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)
