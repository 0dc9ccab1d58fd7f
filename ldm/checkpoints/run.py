"""The run directory: one folder per run. The command that made a run finds it again and resumes it.

The process that trains (of several ranks the first) locks its run until it ends, so that no two write to one.
"""

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ldm import UserError
from ldm.checkpoints.provenance import CONFIG, LOCK, RECORD, command, config_hash, environment, git_state
from ldm.checkpoints.resuming import Difference, check_changes, contents, differences, is_below, replaced
from ldm.checkpoints.training_state import POINTER, is_readable, newest_state
from ldm.io.fields import Fields
from ldm.io.reading import read_json, read_yaml
from ldm.io.writing import check_no_link, make_folder, open_plain, opened, write
from ldm.randomness.seeds import EARLIER_GENERATOR, GENERATOR

TAKEN = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
WRITTEN = ("checkpoints", "samples", "averages", "bundle", "metrics.jsonl", "report.md", "curves.png")

# Device and inode of the locks that this process holds. They stay open until it ends, which frees them.
_HELD: set[tuple[int, int]] = set()


@dataclass(frozen=True, kw_only=True)
class Run:
    """`runs/<experiment>/<run id>/`, as compared with a command that may resume it."""

    path: Path
    changed: dict[str, Difference] = field(default_factory=dict)  # options that differ from the run's
    replaced: bool = False  # whether only the contents of equal paths differ

    @property
    def finished(self) -> bool:
        """A run is finished once its bundle is there."""
        return (self.path / "bundle" / "config.yaml").is_file()

    @property
    def checkpoints(self) -> Path:
        """The folder of its checkpoints."""
        return self.path / "checkpoints"

    def state(self) -> Path | None:
        """The newest whole checkpoint that torch can load."""
        return newest_state(self.checkpoints, usable=is_readable)

    def record(self) -> dict[str, Any]:
        """Contents of `run.json`; OSError or ValueError if it is missing or damaged."""
        record = Fields.of(read_json(self.path / RECORD), name=str(self.path / RECORD))
        record.text("config_hash")
        return dict(record.values)

    def config(self) -> dict[str, Any]:
        """Contents of `config.yaml`; OSError or ValueError if it is missing or damaged."""
        return dict(Fields.of(read_yaml(self.path / CONFIG), name=str(self.path / CONFIG)).values)

    def resumed(self, config: Mapping[str, Any], *, step: int) -> None:
        """Records that the run is resumed after a step with a config, which replaces the run's.

        The history keeps both values of each changed option. A bundle is renamed, since the run is no longer
        finished. UserError if no step is left for changed options, or a link is in the way.
        """
        for name in WRITTEN:
            check_no_link(self.path / name)
        record = self.record()
        changed = {key: list(each) for key, each in self.changed.items()}
        last = config["trainer"]["max_steps"] if changed else None
        if last is not None and step >= last:
            raise UserError(
                f"{self.path} has taken {step} steps, and trainer.max_steps={last} leaves none to take with "
                "other options: raise steps= and list it in resume_changes, or use resume=never for a new run"
            )
        if "inputs" not in record:
            print(f"{self.path} is of an earlier version: its data and codec were not recorded or compared")
        if self.finished:
            (self.path / "bundle").rename(self.path / f"bundle-step={step:08d}")
        now = {"step": step, "started": datetime.now(UTC).isoformat(), "command": command()}
        now |= git_state() | {"config_hash": config_hash(config), "changed": changed}
        record |= {"config_hash": config_hash(config), "inputs": contents(config)}
        record["resumed"] = [*record.get("resumed", []), now]
        # the record first: a process that is killed between the two leaves no unrecorded change
        write(self.path / RECORD, json.dumps(record, indent=2) + "\n")
        write(self.path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def find_run(
    root: str,
    experiment: str,
    config: Mapping[str, Any],
    *,
    resume: str,
    changes: Sequence[str] = (),
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Run | None:
    """The run that a command resumes, held for this process, or None where it means a new one.

    Args:
        config: the resolved config; what it leaves out (paths of this run) may differ between starts.
        resume: "auto" resumes the newest run of this experiment that leads to the same result, "never" none;
            anything else is the folder of a run.
        changes: options that may differ from the run's; it is resumed with their new values.
        aliases: keys of the config that repeat another key's value, and that key.

    Raises UserError: `resume` names no run, another process has the run, or it was trained with other
    options, data or networks.
    """
    if resume == "never":
        if changes:
            raise UserError(f"resume_changes={list(changes)} but resume=never resumes no run: leave one out")
        return None
    reads = contents(config)

    def _compared(run: Run) -> Run:
        old, read = run.config(), run.record().get("inputs", {})
        found = differences(old, config, read=read, reads=reads, aliases=aliases)
        return replace(run, changed=found, replaced=replaced(found, old, config))

    if resume != "auto":
        if not (Path(resume) / RECORD).is_file():
            raise UserError(f"resume={resume} is no run directory (no {RECORD}): write auto, never or a run")
        run = _compared(Run(path=Path(resume)))
        check_changes(run.changed, changes, run=run.path)
        return _held(run)
    if (chosen := _chosen(_compared, Path(root) / experiment, changes)) is not None:
        check_changes(chosen.changed, changes, run=chosen.path)
    elif changes:
        raise UserError(
            f"no run of {experiment} in {root} differs in resume_changes={list(changes)} alone: name one "
            "with resume=<its folder>, or leave resume_changes out for a new run"
        )
    return _held(chosen, below=Path(root))


def _chosen(compared: Callable[[Run], Run], folder: Path, changes: Sequence[str]) -> Run | None:
    """The run in a folder that a command means; of those that fit equally well, the one active last."""
    runs = []
    for run in sorted((Run(path=record.parent) for record in folder.glob(f"*/{RECORD}")), key=_age):
        with suppress(OSError, UserError):  # a run with a damaged record is never chosen
            runs.append(compared(run))
    preferred: tuple[Callable[[Run], bool], ...] = (
        lambda run: not run.changed,
        lambda run: all(is_below(key, changes) for key in run.changed),
        lambda run: run.replaced and not run.finished,  # to be refused, with the changed data or bundle
    )
    return next((run for fits in preferred for run in runs if fits(run)), None)


def new_run(root: str, experiment: str, config: Mapping[str, Any]) -> Run:
    """Makes a new run directory with its config and record, locked for this process."""
    started = datetime.now(UTC)
    path = Path(root) / experiment / f"{started:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}"
    hold(make_folder(path, below=Path(root)))
    write(path / CONFIG, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started.isoformat()}
    inputs = {"config_hash": config_hash(config), "inputs": contents(config)}
    record = owner | {"command": command(), "generator": GENERATOR} | inputs | git_state() | environment()
    # the record last: a folder without one is no run
    write(path / RECORD, json.dumps(record, indent=2) + "\n")
    return Run(path=path)


def _age(run: Run) -> tuple[float, str]:
    """Seconds since a run started or last saved a checkpoint, and its name; a future time is ignored."""
    now, times = time.time(), [0.0]
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        record = read_json(run.path / RECORD)
        times.append(datetime.fromisoformat(record["started"]).timestamp())
    with suppress(OSError):
        times.append((run.checkpoints / POINTER).lstat().st_mtime)
    return now - max(each for each in times if each <= now), run.path.name


def _held(run: Run | None, *, below: Path | None = None) -> Run | None:
    """The run, locked for this process unless it is finished.

    A run of another generator of random numbers is refused: it would not end like an uninterrupted one.
    """
    if run is not None and (run.changed or not run.finished):
        hold(run.path, below=below)
        generator = run.record().get("generator", EARLIER_GENERATOR)
        if generator != GENERATOR:
            raise UserError(
                f"{run.path} was started with random numbers of {generator}, and this version of ldm has "
                f"{GENERATOR}: resume it with the version that started it, or train anew with resume=never"
            )
    return run


def hold(folder: Path, *, below: Path | None = None) -> None:
    """Locks a folder for this process until it ends; a second call does nothing.

    A POSIX record lock, not flock: forked loader processes, which may outlive a killed training by some
    seconds, do not share it, and it works over NFS. It ends with its process, so that none is stale. A line
    is printed where the file system has no locks.

    Raises UserError: another process has the lock, or a link has its name.
    """
    path = make_folder(folder, below=below) / LOCK
    with opened(folder, below=below) as descriptor:
        if _identity(descriptor) in _HELD:
            return
        file = open_plain(descriptor, path, os.O_RDWR | os.O_CREAT)
        key = _identity(descriptor)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            remedy = "wait for it, end it, or make a run of your own with resume=never"
            raise UserError(f"{folder} is in use by {owner}: {remedy}") from None
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(f"{folder}: its file system has no locks: run only one command at a time there", flush=True)
    if os.fstat(file).st_nlink == 1:  # a file with a second name elsewhere keeps its bytes
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _HELD.add(key)


def _identity(folder: int) -> tuple[int, int] | None:
    """Device and inode of the lock in an open folder; opening and closing the file would free the lock."""
    try:
        found = os.stat(LOCK, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
