"""What state a training is in, told from files and from the lock of a process that really holds it."""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from ldm.checkpoints.run import hold
from ldm.serve.trainings import state_of


def make_run(path: Path, *, logged: int = 0, saved: int = 0, finished: bool = False) -> Path:
    """A run's folder as a training leaves it: the log counts its steps from 0, checkpoints from 1."""
    path.mkdir(parents=True)
    lines = [json.dumps({"step": step, "train/loss": 1 / (step + 1)}) for step in range(logged)]
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (path / ".lock").write_text(f"process 1 on {socket.gethostname()}")
    if saved:
        (path / "checkpoints" / f"step={saved:08d}").mkdir(parents=True)
    if finished:
        (path / "bundle").mkdir()
        (path / "bundle" / "config.yaml").write_text("format: 1\n")
    return path


@pytest.mark.parametrize(
    ("files", "word", "step", "said"),
    [
        ({"logged": 8, "saved": 8, "finished": True}, "finished", 8, "bundle"),
        ({"logged": 8, "saved": 8}, "stopped", 8, "resumes it at step 8"),
        ({"logged": 8, "saved": 10}, "stopped", 10, "resumes it at step 10"),
        ({"logged": 8, "saved": 5}, "died", 8, "its last 3 steps: the same command resumes it at step 5"),
        ({"logged": 8}, "died", 8, "before its first checkpoint"),
        ({}, "died", 0, "before its first checkpoint"),
    ],
)
def test_without_a_process_the_files_tell_the_state(tmp_path, files, word, step, said):
    state = state_of(make_run(tmp_path / "run", **files))
    assert (state.word, state.step) == (word, step)
    assert said in state.sentence


def hold_on(run: Path, said: "multiprocessing.synchronize.Event") -> None:
    """Holds a run as a training does, until the process is killed."""
    hold(run)
    said.set()
    time.sleep(600)


@pytest.fixture
def held(tmp_path) -> Iterator[tuple[Path, BaseProcess]]:
    """A run and the process that holds it."""
    run, forked = make_run(tmp_path / "run", logged=8, saved=5), multiprocessing.get_context("fork")
    said = forked.Event()
    process = forked.Process(target=hold_on, args=(run, said))
    process.start()
    assert said.wait(60)
    yield run, process
    process.kill()
    process.join()


def test_a_run_is_running_as_long_as_its_process_lives(held):
    run, process = held
    state = state_of(run)
    assert state.word == "running"
    assert f"process {process.pid} on" in state.sentence
    process.kill()
    process.join()
    assert state_of(run).word == "died"  # nothing is left of the lock


def test_to_ask_for_the_state_takes_no_lock(held):
    run, process = held
    before = (run / ".lock").read_bytes()
    for _ in range(3):
        state_of(run)
    assert (run / ".lock").read_bytes() == before
    process.kill()
    process.join()
    state_of(run)
    hold(run)  # raises where somebody has the lock


def test_a_silent_training_is_said_to_be_silent(held):
    run, _ = held
    for path in (run / "metrics.jsonl", run / "checkpoints"):
        os.utime(path, (1e9, 1e9))
    assert "it has written nothing for" in state_of(run).sentence


def test_a_training_of_another_machine_is_running_while_it_writes(tmp_path):
    run = make_run(tmp_path / "run", logged=8, saved=5)
    (run / ".lock").write_text("process 1 on elsewhere")
    state = state_of(run)
    assert state.word == "running"
    assert "can't be seen from this machine" in state.sentence
    for path in (run / "metrics.jsonl", run / "checkpoints"):
        os.utime(path, (1e9, 1e9))
    assert state_of(run).word == "died"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_strange_lock_holds_nothing_and_nobody_up(tmp_path, kind):
    run = make_run(tmp_path / "run", logged=8, saved=8)
    lock = run / ".lock"
    lock.unlink()
    {"link": lambda: lock.symlink_to("/dev/zero"), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[
        kind
    ]()
    assert state_of(run).word == "stopped"
