"""The run directory: one folder a run, made once, found again by the command that made it."""

import json
import os
import socket
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ldm.checkpoints.provenance import command, config_hash, environment, git_state
from ldm.checkpoints.store import newest_state

RECORD = "run.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """`runs/<experiment>/<run id>/`."""

    path: Path

    @property
    def finished(self) -> bool:
        """A run is finished once its bundle is there."""
        return (self.path / "bundle" / "config.yaml").is_file()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def state(self) -> Path | None:
        """File of the newest whole training state."""
        return newest_state(self.checkpoints)

    @property
    def config_hash(self) -> str:
        return json.loads((self.path / RECORD).read_text())["config_hash"]


def find_run(root: str, experiment: str, config: dict[str, Any], *, resume: str) -> Run | None:
    """The run that a command goes on with, or none where it means a new one.

    Args:
        root: folder of all runs.
        experiment: the experiment's name.
        config: the resolved config; what it leaves out (paths of this run) may differ between starts.
        resume: "auto" goes on with the newest run of this experiment if its config is the same, "never" with
            none, anything else is the folder of a run.

    Raises:
        ValueError: `resume` names a folder that is no run.
    """
    if resume not in ("auto", "never"):
        if not (Path(resume) / RECORD).is_file():
            raise ValueError(
                f"resume={resume} is no run directory (it has no {RECORD}); write auto, never or a run"
            )
        return Run(path=Path(resume))
    folder = Path(root) / experiment
    runs = [Run(path=record.parent) for record in sorted(folder.glob(f"*/{RECORD}"))]
    if resume == "auto" and runs and runs[-1].config_hash == config_hash(config):
        return runs[-1]
    return None


def new_run(root: str, experiment: str, config: dict[str, Any]) -> Run:
    """A run directory of its own, with its config and record."""
    started = datetime.now(UTC)
    path = Path(root) / experiment / f"{started:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    path.mkdir(parents=True, exist_ok=False)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started.isoformat()}
    record = owner | {"command": command(), "config_hash": config_hash(config)} | git_state() | environment()
    temporary = path / f".{RECORD}.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    temporary.replace(path / RECORD)  # last and whole: a folder without its record is no run
    return Run(path=path)
