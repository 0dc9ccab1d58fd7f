"""The trainings below a folder, read only: states, curves, sheets of samples, reports, evaluations.

The state of one is read from its lock, bundle, checkpoints and log, without touching any of them:

| state | what is there |
| --- | --- |
| running | a process holds the lock of the run's folder, or one of another machine has written just now |
| finished | the bundle, which the last step writes |
| stopped | no lock, no bundle; the newest checkpoint holds all steps of the log: nothing is lost |
| died | no lock, no bundle; the log has steps that no checkpoint holds |
"""

import hashlib
import os
import re
import socket
import time
from contextlib import suppress
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from fastapi import APIRouter, Depends, Request, Response

from ldm import UserError
from ldm.checkpoints.provenance import LOCK, RECORD, facts_of
from ldm.checkpoints.training_state import NAME
from ldm.io.curves import read_curves, read_lines
from ldm.io.fields import Fields
from ldm.io.writing import open_plain, opened
from ldm.serve.service import Refused

LOG = "metrics.jsonl"
END = 2**20  # bytes of a log that are read for its last step
QUIET = 600  # seconds without a sign of life, after which a running training is said to be silent
MOST = 200  # runs that are listed, those that were active last
POINTS = 400  # of a curve that is sent
LARGEST = 32 * 2**20  # bytes of a file that is sent, and at the end of a log that are shown
KINDS = {".png": "image/png", ".md": "text/plain; charset=utf-8", ".json": "application/json"}
FILES = ("report.md", "curves.png", "samples/*.png", "reconstructions/*.png")  # of a run
MEASURED = ("report.md", "results.json", "*.png")  # of an evaluation
DEPTHS = ("*", "*/*", "*/*/*")  # where runs and evaluations lie below the folder


routes = APIRouter(prefix="/v1/runs", tags=["trainings"])


def runs_of(request: Request) -> Path:
    """The folder of the trainings; it may be missing, and then there are none."""
    return request.app.state.runs


Runs = Annotated[Path, Depends(runs_of)]


@routes.get("")
def list_runs(runs: Runs) -> dict[str, Any]:
    """The trainings, those that were active last first, and the evaluations."""
    found = [summary(runs, name, path) for name, path in folders(runs, RECORD).items()]
    found.sort(key=lambda each: (each["state"] == "running", each["touched"]), reverse=True)
    return {"folder": str(runs), "runs": found[:MOST], "evaluations": evaluations(runs)}


@routes.get("/{run}")
def read_run(runs: Runs, run: str) -> dict[str, Any]:
    """A training with its curves, `{name: [[step, value], ...]}`, and all its sheets of samples."""
    path = named(folders(runs, RECORD), run)
    curves = {name: thinned(points) for name, points in read_curves(path / LOG, most=LARGEST).items()}
    return summary(runs, run, path) | {"curves": curves, "sheets": sheets(run, path)} | origin(path)


@routes.get("/{run}/files/{file}", response_class=Response)
def read_file(runs: Runs, run: str, file: str) -> Response:
    """A sheet, a figure or a report."""
    path = named(folders(runs, RECORD) | folders(runs, "results.json"), run)
    return sent(named(files(path), file), below=runs)


def named(found: dict[str, Path], name: str) -> Path:
    """The path of an id; answers 404 where there is none."""
    if name not in found:
        raise Refused("there is no such training or file: reload the page", status=404)
    return found[name]


def identity(path: Path, root: Path) -> str:
    """The id of a path: a hash, so that a request can't name another one."""
    return hashlib.sha256(str(path.relative_to(root)).encode(errors="surrogateescape")).hexdigest()[:16]


def folders(root: Path, holding: str) -> dict[str, Path]:
    """The folders up to three levels below a root that hold a file of this name, by id; without links."""
    found = sorted(path.parent for depth in DEPTHS for path in root.glob(f"{depth}/{holding}"))
    return {identity(path, root): path for path in found if not is_linked(path, root)}


def is_linked(path: Path, root: Path) -> bool:
    """Whether a name between the root and a path is a link."""
    return any(each.is_symlink() for each in (path, *path.parents) if each != root and root in each.parents)


def files(path: Path) -> dict[str, Path]:
    """The files of a run or an evaluation that may be read, by id."""
    patterns = FILES if (path / RECORD).is_file() else MEASURED
    listed = (each for pattern in patterns for each in sorted(path.glob(pattern)))
    return {identity(each, path): each for each in listed if each.suffix in KINDS}


def sent(path: Path, *, below: Path) -> Response:
    """A file's bytes; 404 where it is a link, has gone or is too large."""
    try:
        with (
            opened(path.parent, below=below) as folder,
            os.fdopen(open_plain(folder, path, os.O_RDONLY), "rb") as file,
        ):
            data = file.read(LARGEST + 1)
    except (OSError, UserError) as error:
        raise Refused(f"{path.name} can't be read: it is gone, or a link", status=404) from error
    if len(data) > LARGEST:
        raise Refused(
            f"{path.name} has more than {LARGEST // 2**20} MiB: open it on the machine itself", status=413
        )
    return Response(data, media_type=KINDS[path.suffix])


def summary(root: Path, name: str, path: Path) -> dict[str, Any]:
    """A training as it is listed."""
    state, last = state_of(path), sheets(name, path)[-1:]
    links = [
        {"title": title, "url": url_of(name, path / file, path)}
        for title, file in (("report", "report.md"), ("curves as a picture", "curves.png"))
        if (path / file).is_file()
    ]
    return {
        "id": name,
        "name": title_of(path, root),
        "state": state.word,
        "sentence": state.sentence,
        "step": state.step,
        "steps": steps_of(path),
        "touched": state.touched,
        "sheet": last[0] if last else None,
        "links": links,
    }


def title_of(path: Path, root: Path) -> str:
    """A path below the root as a text, whatever bytes it has."""
    return os.fsencode(path.relative_to(root)).decode(errors="replace")


def recorded(path: Path) -> Fields:
    """The config of a training, and under `run` its record; empty where they are damaged."""
    with suppress(OSError, ValueError, TypeError):  # TypeError: the config is no mapping
        return Fields.of(facts_of(path), name=str(path))
    return Fields(str(path), {})


def steps_of(path: Path) -> int | None:
    """The steps that a training is to take; None where its config doesn't say."""
    with suppress(ValueError):
        return recorded(path).mapping("trainer").whole("max_steps", high=2**40)
    return None


def origin(path: Path) -> dict[str, Any]:
    """The command, commit, machine and start of a training."""
    record = recorded(path).values.get("run")
    known = record if isinstance(record, dict) else {}
    texts = {name: value for name, value in known.items() if isinstance(value, str)}
    return {name: texts.get(name) for name in ("command", "commit", "host", "started")}


def sheets(name: str, path: Path) -> list[dict[str, Any]]:
    """The sheets of a training by step: `step` and `url`."""
    found = ((re.fullmatch(r"step=(\d+)", each.stem), each) for each in files(path).values())
    steps = [{"step": int(match[1]), "url": url_of(name, each, path)} for match, each in found if match]
    return sorted(steps, key=lambda each: each["step"])


def url_of(name: str, file: Path, path: Path) -> str:
    """Where a file of a run is read."""
    return f"/v1/runs/{name}/files/{identity(file, path)}"


def evaluations(root: Path) -> list[dict[str, str]]:
    """Links to the reports of evaluations."""
    found = folders(root, "results.json").items()
    return [
        {"title": title_of(path, root), "url": url_of(name, path / "report.md", path)}
        for name, path in found
        if (path / "report.md").is_file()
    ]


def thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` of a curve: each stretch's least and largest value, so that no peak is lost."""
    width = -(-len(points) // (POINTS // 2))
    if width <= 2:
        return points
    kept = (points[start : start + width] for start in range(0, len(points), width))
    ends = ({min(part, key=itemgetter(1)), max(part, key=itemgetter(1))} for part in kept)
    return [point for pair in ends for point in sorted(pair)]


class State(NamedTuple):
    """A training's state in a word and in a sentence, its step, and when it last wrote something."""

    word: str
    sentence: str
    step: int
    touched: float  # seconds since 1970; 0 where nothing was written


def state_of(path: Path) -> State:
    """The state of the run in a folder."""
    logged, saved = logged_steps(path / LOG), saved_step(path / "checkpoints")
    step, touched = max(logged, saved), last_written(path)
    silent = time.time() - touched
    held, owner = lock_of(path)
    if held:
        quiet = f"; it has written nothing for {round(silent / 60)} min" if silent > QUIET else ""
        return State("running", f"{owner or 'a process'} is training{quiet}", step, touched)
    if (path / "bundle" / "config.yaml").is_file():
        return State("finished", "its bundle is written", step, touched)
    if owner and not owner.endswith(f" on {socket.gethostname()}") and silent < QUIET:
        sentence = f"{owner} wrote something in the last minutes; its lock can't be seen from this machine"
        return State("running", sentence, step, touched)
    if saved == 0:
        sentence = "it ended before its first checkpoint: the same command starts it anew"
        return State("died", sentence, step, touched)
    resumes = f"the same command resumes it at step {saved}"
    if saved >= logged:
        return State("stopped", f"it was stopped, and everything is saved: {resumes}", step, touched)
    lost = logged - saved
    return State("died", f"it ended without saving its last {lost} steps: {resumes}", step, touched)


def lock_of(path: Path) -> tuple[bool, str]:
    """Whether another process of this machine holds a run, and how the last process that did calls itself."""
    try:
        with opened(path) as folder:
            file = open_plain(folder, path / LOCK, os.O_RDONLY)
    except (OSError, UserError):  # there is none, or a link, pipe or folder has its name
        return False, ""
    owner = ""
    try:
        owner = os.pread(file, 200, 0).decode(errors="replace").strip()
        # a question alone: to take the lock, even for a moment, could turn a starting training away
        os.lockf(file, os.F_TEST, 0)
        return False, owner
    except OSError as error:
        return isinstance(error, BlockingIOError | PermissionError), owner  # else it has no locks
    finally:
        os.close(file)


def logged_steps(log: Path) -> int:
    """The steps in a log, which counts them from 0; 0 where there is none."""
    try:
        found = log.stat()
    except OSError:
        return 0
    return _logged_steps(log, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=1024)  # a list of runs is asked for every few seconds, and few of their logs have grown
def _logged_steps(log: Path, size: int, changed: int) -> int:
    return max((line.step + 1 for line in read_lines(log, most=END)[0]), default=0)


def saved_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint in a folder; 0 where there is none."""
    found = (re.fullmatch(NAME, each.name) for each in checkpoints.glob("step=*"))
    return max((int(match[1]) for match in found if match), default=0)


def last_written(path: Path) -> float:
    """When the log or a checkpoint was last written, in seconds since 1970; 0 where there is neither."""
    times = [0.0]
    for each in (path / LOG, path / "checkpoints", path / "bundle"):
        with suppress(OSError):
            times.append(each.lstat().st_mtime)
    return max(times)
