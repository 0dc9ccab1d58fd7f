"""The run directory: one folder a run, made once, found again by the command that made it.

The process that trains (of several ranks the first) holds its run until it ends, so no two write to one.
"""

import json
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from ldm.checkpoints.loading import is_readable
from ldm.checkpoints.lock import hold
from ldm.checkpoints.provenance import command, config_hash, environment, git_state, result_hash
from ldm.checkpoints.store import POINTER, newest_state
from ldm.files import make_folder, write
from ldm.foreign import read_json, read_yaml
from ldm.seeds import EARLIER_GENERATOR, GENERATOR

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
        """File of the newest whole training state that torch can load."""
        return newest_state(self.checkpoints, usable=is_readable)

    @property
    def generator(self) -> str:
        """What its random numbers come from."""
        try:
            return read_json(self.path / RECORD).get("generator", EARLIER_GENERATOR)
        except (OSError, ValueError, AttributeError):  # a damaged record: `hash` lets no command mean it
            return "an unknown generator"

    @property
    def hash(self) -> str | None:
        """Hash of what decides its result; none if its record is damaged, so that no command means it."""
        try:
            record = read_json(self.path / RECORD)
            if "result_hash" not in record and record["config_hash"]:  # version 0.1.0
                return result_hash(read_yaml(self.path / "config.yaml"))
            return record["result_hash"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def find_run(root: str, experiment: str, config: dict[str, Any], *, resume: str) -> Run | None:
    """The run that a command goes on with, held for this process, or none where it means a new one.

    Args:
        root: folder of all runs.
        experiment: the experiment's name.
        config: the resolved config; what it leaves out (paths of this run) may differ between starts.
        resume: "auto" goes on with the newest run of this experiment that comes to the same result
            (`result_hash`), "never" with none, anything else is the folder of a run.

    Raises:
        ValueError: `resume` names a folder that is no run, or another process trains the run.
    """
    if resume not in ("auto", "never"):
        if not (Path(resume) / RECORD).is_file():
            raise ValueError(
                f"resume={resume} is no run directory (it has no {RECORD}); write auto, never or a run"
            )
        return _held(Run(path=Path(resume)))
    if resume == "never":
        return None
    wanted = result_hash(config)
    runs = [Run(path=record.parent) for record in (Path(root) / experiment).glob(f"*/{RECORD}")]
    same = (run for run in sorted(runs, key=_age) if run.hash == wanted)
    return _held(next(same, None), below=Path(root))


def new_run(root: str, experiment: str, config: dict[str, Any]) -> Run:
    """A run directory of its own, with its config and record, held for this process."""
    started = datetime.now(UTC)
    path = Path(root) / experiment / f"{started:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    hold(make_folder(path, below=Path(root)))
    write(path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started.isoformat()}
    hashes = {"config_hash": config_hash(config), "result_hash": result_hash(config)}
    record = owner | {"command": command(), "generator": GENERATOR} | hashes | git_state() | environment()
    # last and whole: a folder without its record is no run
    write(path / RECORD, json.dumps(record, indent=2) + "\n")
    return Run(path=path)


def _age(run: Run) -> tuple[float, str]:
    """Seconds since a run was started or last saved a state, whatever its folder is called.

    A time in the future comes of a wrong clock and tells nothing.
    """
    now, times = time.time(), [0.0]
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        record = read_json(run.path / RECORD)
        times.append(datetime.fromisoformat(record["started"]).timestamp())
    with suppress(OSError):
        times.append((run.checkpoints / POINTER).lstat().st_mtime)
    return now - max(each for each in times if each <= now), run.path.name


def _held(run: Run | None, *, below: Path | None = None) -> Run | None:
    """The same run, which no other process can take now; a finished one isn't written to any more.

    Raises:
        ValueError: it was begun with another generator of random numbers, so that its end would not be that
            of an uninterrupted run.
    """
    if run is not None and not run.finished:
        hold(run.path, below=below)
        if run.generator != GENERATOR:
            raise ValueError(
                f"{run.path} was begun with random numbers of {run.generator}, and this version of ldm has"
                f" {GENERATOR}: resume it with the version that began it, or train anew with resume=never"
            )
    return run
