"""Facts about run directories: which run a command means."""

import json

import pytest
import yaml

from ldm.checkpoints.run import find_run, new_run
from ldm.checkpoints.store import save_state

CONFIG = {"name": "tiny", "steps": 3, "net": {"width": 8}}


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
    reordered = {"steps": 3, "net": {"width": 8}, "name": "tiny"}
    assert opened().path == opened(reordered).path == run.path


def test_another_config_makes_another_run(opened):
    run = opened()
    assert opened(CONFIG | {"steps": 4}).path != run.path


def test_never_makes_another_run(opened):
    assert len({opened(resume="never").path for _ in range(3)}) == 3


def test_only_the_newest_run_is_gone_on_with(opened, tmp_path):
    first = opened()
    older = first.path.rename(first.path.with_name("20200101-000000-aaaa"))
    second = opened(CONFIG | {"steps": 4})
    assert opened().path not in (older, second.path)


def test_a_run_can_be_named(opened):
    run = opened()
    opened(resume="never")
    assert opened(CONFIG | {"steps": 9}, resume=str(run.path)).path == run.path


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


def test_a_run_knows_its_newest_state_and_its_end(opened):
    run = opened()
    save_state(run.checkpoints, 7, lambda path: path.write_bytes(b"x"), keep=2)
    assert run.state() == run.checkpoints / "step=00000007" / "state.ckpt"
    (run.path / "bundle").mkdir()
    assert not run.finished
    (run.path / "bundle" / "config.yaml").touch()
    assert run.finished
