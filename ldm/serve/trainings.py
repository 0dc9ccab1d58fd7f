"""The trainings below a folder, read only: states, curves, sheets of samples, reports, evaluations."""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from ldm import UserError
from ldm.checkpoints.training_state import RECORD, facts_of
from ldm.io.curves import read_curves
from ldm.io.fields import Fields
from ldm.io.links import open_plain, opened
from ldm.serve.run_states import LOG, state_of
from ldm.serve.service import Refused

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
    ends = ((min(part, key=_value), max(part, key=_value)) for part in kept)
    return [point for pair in ends for point in sorted(set(pair))]


def _value(point: tuple[int, float]) -> float:
    return point[1]
