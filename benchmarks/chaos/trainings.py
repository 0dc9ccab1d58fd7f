"""Whole trainings of `python -m ldm.train` that are killed, or asked to stop, until they are done."""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chaos import saver
from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.verdict import Loss
from benchmarks.chaos.world import EVERY, SMALL, config, last_state, write_pictures
from benchmarks.harness import Fault
from ldm.checkpoints.training_state import newest_state, step_of
from ldm.config import build
from ldm.train import main

LIMIT = 120.0  # seconds after which a training that was asked to stop hangs


def command(pictures: Path, runs: Path, *, num_workers: int) -> None:
    """The command, in this process; what it prints goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    options = [f"data.root={pictures}", f"runs={runs}", f"data.num_workers={num_workers}"]
    sys.argv = ["ldm.train", *SMALL, *options]
    main()


def wait(pid: int, seconds: float) -> int | None:
    """The exit status of a process that ends in time, else none."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def kill(pid: int) -> None:
    """Ends a process and, after it, those that it started."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    clear(pid)


def clear(pid: int) -> None:
    """Ends what is left of a process's group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def steps_taken(run: Path) -> int:
    """Steps that a run has logged."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    whole = [json.loads(line)["step"] for line in lines if line.endswith("}")]
    return max(whole, default=-1) + 1


def only_run(runs: Path) -> Path | None:
    """The one run of a folder, once it is there."""
    found = sorted(record.parent for record in runs.glob("*/*/run.json"))
    assert len(found) <= 1, f"a killed training has made {len(found)} runs"
    return found[0] if found else None


@cache
def quiet() -> tuple[TemporaryDirectory[str], Path, Path, float]:
    """The training in peace: the folder that holds all of it, its pictures, its run, and its seconds."""
    home = TemporaryDirectory()
    pictures, runs = write_pictures(Path(home.name) / "pictures"), Path(home.name) / "runs"
    parts = config(pictures, runs / "none")
    build(parts.callbacks), build(parts.model.stage)  # imports once what each process would import
    began = time.perf_counter()
    status = wait(saver.child(partial(command, pictures, runs, num_workers=0)), LIMIT)
    run = only_run(runs)
    assert status == 0 and run is not None, f"the training in peace ended with {status}"  # noqa: PT018
    return home, pictures, run, time.perf_counter() - began


def same(ours: Path, theirs: Path) -> list[str]:
    """Where a run differs from the one that was never ended."""
    states = [compared(last_state(run / "checkpoints")) for run in (ours, theirs)]
    bundles = [sorted((run / "bundle").glob("*.safetensors")) for run in (ours, theirs)]
    files = [{path.name: path.read_bytes() for path in bundle} for bundle in bundles]
    return differences(*states)[:3] + ["bundles differ"] * (files[0] != files[1])


def end(folder: Path, tries: int, *, by: signal.Signals) -> Loss:
    """Ends trainings until there were so many ends; those that are done in between must be the quiet one.

    Args:
        folder: an empty one.
        tries: ends that met a running training.
        by: SIGKILL, which goes to the training alone, or a signal to all its processes that asks it to stop.
    """
    draw, failures, number, done, lost = random.Random(int(by)), [], 0, 0, 0
    _, pictures, reference, duration = quiet()
    while number < tries or only_run(folder / "runs") is not None:
        workers = number % 3  # none, one or two, whatever it was before
        pid = saver.child(partial(command, pictures, folder / "runs", num_workers=workers))
        seconds = draw.uniform(0, duration) if number < tries else LIMIT
        status = wait(pid, seconds)
        if status is None:
            number += 1
            wrongs, again = stopped(pid, folder / "runs", by)
            failures += [f"end {number}: {sentence}" for sentence in wrongs]
            lost = max(lost, again)
        else:
            clear(pid)
            run = only_run(folder / "runs")
            failures += [f"exit status {status}"] if status or run is None else same(run, reference)
            done += 1
            shutil.rmtree(folder / "runs", ignore_errors=True)
    interval = EVERY if by is signal.SIGKILL else 0
    says = f"{done} trainings of {duration:.1f} s came to their end"
    return Loss(tries=number, failures=failures, lost=lost, interval=interval, says=says)


def stopped(pid: int, runs: Path, by: signal.Signals) -> tuple[list[str], int]:
    """Ends a training; what is wrong then, and how many steps have to be taken again."""
    wrongs = []
    if by is signal.SIGKILL:
        kill(pid)
    else:
        os.killpg(pid, by)
        if wait(pid, LIMIT) is None:
            kill(pid)
            wrongs.append(f"{by.name} had no effect for {LIMIT:g} s")
        clear(pid)
    run = only_run(runs)
    if run is None:
        return wrongs, 0
    found, taken = newest_state(run / "checkpoints"), steps_taken(run)
    return wrongs, taken - (step_of(found.parent) if found else 0)


FAULTS = [
    Fault(area="trainings", name=f"{by.name} to a training", tries=tries, run=partial(end, by=by))
    for by, tries in (
        (signal.SIGKILL, (36, 2)),
        (signal.SIGTERM, (12, 1)),
        (signal.SIGUSR1, (12, 1)),
    )
]
