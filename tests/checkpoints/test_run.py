"""Facts about run directories: which run a command means, and that nobody else has it."""

import errno
import fcntl
import json
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from ldm.checkpoints.run import find_run, new_run
from ldm.checkpoints.training_state import discard_damaged, is_readable, save_state, states

CONFIG = {"name": "tiny", "steps": 3, "net": {"width": 8}, "logger": {}}


@pytest.fixture
def opened(tmp_path):
    def call(config=CONFIG, *, resume="auto"):
        where = (str(tmp_path / "runs"), "tiny", config)
        return find_run(*where, resume=resume) or new_run(*where)

    return call


def test_a_new_run_records_its_config_command_and_code(opened):
    run = opened()
    assert yaml.safe_load((run.path / "config.yaml").read_text()) == CONFIG
    record = json.loads((run.path / "run.json").read_text())
    assert {"command", "commit", "dirty", "config_hash", "host", "pid", "started", "torch"} <= record.keys()
    assert run.state() is None
    assert not run.finished


def test_the_same_command_means_the_same_run(opened):
    run = opened()
    reordered = {"steps": 3, "net": {"width": 8}, "logger": {}, "name": "tiny"}
    assert opened().path == opened(reordered).path == run.path


def test_another_config_makes_another_run(opened):
    run = opened()
    assert opened(CONFIG | {"steps": 4}).path != run.path


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"root": "data", "num_workers": 4, "worker_timeout": 9}},
        {"logger": {"_target_": "ldm.loggers.wandb_log.wandb_logger", "project": "mine"}},
        {"trainer": {"precision": 32, "log_every_n_steps": 50, "enable_progress_bar": False}},
        {"callbacks": {"saving": {"every": 7}}},
        {"summary": "said better"},
        {"init": None},
    ],
)
def test_what_does_not_change_the_result_does_not_change_the_run(opened, changes):
    plain = {
        "data": {"root": "data", "num_workers": 0},
        "logger": {},
        "trainer": {"precision": 32, "log_every_n_steps": 1},
        "callbacks": {"saving": {"every": 200}},
        "summary": "a run",
    }
    run = opened(CONFIG | plain)
    assert opened(CONFIG | plain | changes).path == run.path


@pytest.mark.parametrize(
    "changes",
    [{"data": {"root": "others"}}, {"trainer": {"precision": "16-mixed"}}, {"seed": 1}, {"callbacks": {}}],
)
def test_what_changes_the_result_makes_another_run(opened, changes):
    plain = {
        "data": {"root": "data"},
        "trainer": {"precision": 32},
        "seed": 0,
        "callbacks": {"ema": {"decay": 0.9}},
    }
    run = opened(CONFIG | plain)
    assert opened(CONFIG | plain | changes).path != run.path


@pytest.fixture
def forget():
    """`forget(run, field)`: the run with a record of a version that didn't write a field."""

    def call(run, field):
        record = json.loads((run.path / "run.json").read_text())
        del record[field]
        (run.path / "run.json").write_text(json.dumps(record))
        return run

    return call


@pytest.mark.parametrize("named", [False, True])
def test_a_run_of_another_generator_is_not_resumed_with_other_noise(opened, forget, named):
    run = forget(opened(), "generator")
    sentence = f"{run.path} was started with random numbers of mt19937, and this version of ldm has philox"
    with pytest.raises(ValueError, match=sentence):
        opened(resume=str(run.path) if named else "auto")
    assert opened(resume="never").path != run.path


def test_a_finished_run_of_another_generator_is_found(opened, forget):
    run = forget(opened(), "generator")
    (run.path / "bundle").mkdir()
    (run.path / "bundle" / "config.yaml").touch()
    assert opened().finished


def test_a_run_of_version_0_1_0_is_found(opened, forget):
    run = forget(opened(CONFIG | {"data": {"num_workers": 2}}), "inputs")
    assert opened(CONFIG | {"data": {"num_workers": 4}}).path == run.path
    assert opened(CONFIG | {"steps": 9}).path != run.path


def test_never_makes_another_run(opened):
    assert len({opened(resume="never").path for _ in range(3)}) == 3


def test_runs_of_other_configs_in_between_change_nothing(opened):
    first = opened()
    second = opened(CONFIG | {"steps": 4})
    assert opened().path == first.path
    assert opened(CONFIG | {"steps": 4}).path == second.path


def test_of_several_runs_of_one_config_the_newest_is_gone_on_with(opened):
    first = opened()
    first.path.rename(first.path.with_name("20200101-000000-aaaa"))
    second = opened(resume="never")
    assert opened().path == second.path


def test_a_run_can_be_named(opened):
    run = opened()
    opened(resume="never")
    assert opened(resume=str(run.path)).path == run.path


@pytest.mark.parametrize("resume", ["", "sometimes", "/nowhere", "/tmp"])
def test_what_is_no_run_is_refused(opened, tmp_path, resume):
    with pytest.raises(ValueError, match=r"is no run directory.*write auto, never or a run"):
        opened(resume=resume)
    assert not (tmp_path / "runs").exists()


def test_a_run_that_died_while_it_was_made_is_left_alone(opened, tmp_path):
    (tmp_path / "runs" / "tiny" / "20990101-000000-aaaa").mkdir(parents=True)
    run = opened()
    assert run.path.name != "20990101-000000-aaaa"
    assert opened().path == run.path


@pytest.mark.parametrize("record", ["", "[]", "{}", "\x00", '{"config_hash": null}', '{"result_hash": null}'])
def test_a_run_whose_record_is_damaged_is_left_alone(opened, record):
    damaged = opened()
    (damaged.path / "run.json").write_text(record)
    run = opened()
    assert run.path != damaged.path
    assert opened().path == run.path


def test_a_file_system_without_locks_is_said(opened, monkeypatch, capsys):
    def lockf(file, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    run = opened()
    assert f"{run.path}: its file system has no locks" in capsys.readouterr().out
    assert opened().path == run.path


def test_a_folder_or_record_of_the_future_does_not_hide_the_newest_run(opened):
    runs = [opened(resume="never") for _ in range(4)]
    renamed = runs[0].path.rename(runs[0].path.with_name("20991231-235959-ffffffff"))
    damaged = runs[1].path / "run.json"
    for record, started in ((runs[2].path / "run.json", "2099-12-31T23:59:59+00:00"), (damaged, 5)):
        record.write_text(json.dumps(json.loads(record.read_text()) | {"started": started}))
    assert opened().path == runs[3].path
    save_state(renamed / "checkpoints", 1, lambda path: path.write_bytes(b"state"), keep=2)
    assert opened().path == renamed


@pytest.mark.parametrize("place", ["tiny", "tiny/run"])
def test_a_run_below_a_link_inside_runs_is_refused(opened, tmp_path, place):
    run = opened()
    link = tmp_path / "runs" / place
    elsewhere = tmp_path / "elsewhere"
    (run.path if place == "tiny/run" else run.path.parent).rename(elsewhere)
    before = sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*"))
    link.symlink_to(elsewhere)
    with pytest.raises(ValueError, match=f"{link} is a link to {elsewhere}, and nothing is written, locked"):
        opened()
    assert sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*")) == before
    assert find_run("", "", CONFIG, resume=str(link if place == "tiny/run" else link / run.path.name))


@pytest.mark.parametrize("make", [Path.symlink_to, Path.hardlink_to])
def test_a_lock_that_is_a_link_leaves_the_other_file_alone(opened, tmp_path, make):
    run, victim = opened(resume="never"), tmp_path / "victim"
    victim.write_text("precious")
    before = victim.stat().st_mtime_ns
    (run.path / ".lock").unlink()
    make(run.path / ".lock", victim)
    if make is Path.symlink_to:
        with pytest.raises(ValueError, match=f"{run.path}/.lock is a link to {victim}"):
            opened(resume=str(run.path))
    else:
        assert opened(resume=str(run.path)).path == run.path
    assert (victim.read_text(), victim.stat().st_mtime_ns) == ("precious", before)


def test_a_run_knows_its_newest_state_and_its_end(opened):
    run = opened()
    whole = {"state_dict": {}, "loops": {}, "global_step": 7}
    save_state(run.checkpoints, 7, lambda path: torch.save(whole, path), keep=2)
    assert run.state() == run.checkpoints / "step=00000007" / "state.ckpt"
    (run.path / "bundle").mkdir()
    assert not run.finished
    (run.path / "bundle" / "config.yaml").touch()
    assert run.finished


class Forged:
    """A pickle of torch's that would make a file if it were trusted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_state_that_cannot_be_loaded_is_passed_over_like_a_damaged_one(opened, tmp_path, capsys):
    run, whole = opened(), {"state_dict": {}, "loops": {}, "global_step": 1}
    forged = {"state_dict": Forged(tmp_path / "executed"), "loops": {}, "global_step": 2}
    for step, held in enumerate((whole, forged, {"x": 1}), start=1):
        save_state(run.checkpoints, step, lambda path, held=held: torch.save(held, path), keep=9)
    save_state(run.checkpoints, 4, lambda path: path.write_bytes(b"text"), keep=9)
    assert run.state() == run.checkpoints / "step=00000001" / "state.ckpt"
    said = capsys.readouterr().out
    for step in (2, 3, 4):
        assert f"step=0000000{step} can't be loaded (torch did not write it)" in said
    assert "weights_only" not in said
    assert not (tmp_path / "executed").exists()
    discard_damaged(run.checkpoints, after=1, usable=is_readable)
    assert [path.name for path in states(run.checkpoints)] == ["step=00000001"]


class Opener(NamedTuple):
    """Another process that has opened a run as a training does."""

    pid: int
    path: str

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def launch(tmp_path):
    """`launch(count)`: processes that open runs at once and stay; a child of each stands for a loader's.

    They are forks because to import torch anew would take seconds; a fork inherits no record lock.
    """
    groups = []

    def act(pipe: int, resume: str) -> None:
        os.setsid()
        where = (str(tmp_path / "runs"), "tiny", CONFIG)
        run = find_run(*where, resume=resume) or new_run(*where)
        os.fork()
        os.write(pipe, f"{os.getpid()} {run.path}\n".encode())
        time.sleep(600)

    def call(count: int = 1, *, resume: str = "auto") -> list[Opener]:
        reading, writing = os.pipe()
        for _ in range(count):
            groups.append(os.fork())
            if groups[-1] == 0:
                try:
                    act(writing, resume)
                finally:
                    os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as lines:
            found = [lines.readline().split() for _ in range(2 * count)]
        return [Opener(int(pid), path) for pid, path in found if int(pid) in groups]

    yield call
    for group in groups:
        os.killpg(group, signal.SIGKILL)
        with suppress(ChildProcessError):  # a test has ended it
            os.waitpid(group, 0)


def test_a_run_that_another_process_trains_is_refused(opened, launch):
    (other,) = launch()
    sentence = (
        rf"{re.escape(other.path)} is in use by process {other.pid} on \S+: wait for it, end it, or make"
    )
    for resume in ("auto", other.path):
        with pytest.raises(ValueError, match=sentence):
            opened(resume=resume)
    assert str(opened(resume="never").path) != other.path


def test_a_killed_process_leaves_its_run_free_even_if_its_children_live(opened, launch):
    (other,) = launch()
    other.kill()
    assert str(opened().path) == other.path


def test_a_finished_run_is_not_held(opened, launch):
    path = Path(launch()[0].path)
    (path / "bundle").mkdir()
    (path / "bundle" / "config.yaml").touch()
    assert opened().path == path


def test_processes_that_start_at_once_have_a_run_each(launch):
    paths = {each.path for each in launch(6, resume="never")}
    assert len(paths) == 6
    assert all(Path(path, "run.json").is_file() for path in paths)


def test_16_runs_of_one_second_are_16_folders(opened):
    assert len({opened(resume="never").path for _ in range(16)}) == 16
