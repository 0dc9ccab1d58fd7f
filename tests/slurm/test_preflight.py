"""What a job is refused for at its start, in one sentence."""

import resource
import shutil

import pytest

from ldm.preflight import check_disk, check_tasks, check_writable
from ldm.preflight import main as preflight

GB = 2**30
TINY = ("batch_size=4", "data.size=16")


def environment(**changes: str) -> dict[str, str]:
    """What SLURM tells a job of two nodes with four tasks and four GPUs each."""
    facts = {
        "SLURM_JOB_ID": "7",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_GPUS_ON_NODE": "4",
    }
    return {name: value for name, value in (facts | changes).items() if value}


@pytest.mark.parametrize("devices", [4, "auto", -1])
def test_tasks_that_are_devices_can_start(devices):
    check_tasks(devices=devices, num_nodes=2, accelerator="gpu", environment=environment())


@pytest.mark.parametrize(
    ("trainer", "changes", "sentence"),
    [
        ({"devices": 2}, {}, "trainer.devices=2 but --ntasks-per-node=4"),
        ({"devices": "auto"}, {"SLURM_NTASKS_PER_NODE": "1"}, "--ntasks-per-node=1 but 4 GPUs a node"),
        ({"num_nodes": 1}, {}, "trainer.num_nodes=1 but --nodes=2"),
        ({}, {"SLURM_NTASKS_PER_NODE": ""}, "--ntasks=8 doesn't say how many tasks a node has"),
        ({"accelerator": "cpu", "devices": 2}, {}, "trainer.devices=2 but --ntasks-per-node=4"),
    ],
)
def test_tasks_that_are_not_devices_are_refused(trainer, changes, sentence):
    asked = {"devices": 4, "num_nodes": 2, "accelerator": "gpu"} | trainer
    with pytest.raises(ValueError, match=sentence):
        check_tasks(**asked, environment=environment(**changes))


def test_outside_a_job_there_is_nothing_to_compare():
    check_tasks(devices=8, num_nodes=4, accelerator="gpu", environment={})


def test_gpus_do_not_count_for_a_training_on_processors():
    check_tasks(devices=4, num_nodes=2, accelerator="cpu", environment=environment(SLURM_GPUS_ON_NODE="1"))


def test_a_disk_without_room_for_the_states_is_refused(tmp_path):
    check_disk(tmp_path, need=GB, free=GB)
    with pytest.raises(ValueError, match=r"has 1.00 GB free and this training writes 2.00 GB"):
        check_disk(tmp_path, need=2 * GB, free=GB)


def test_a_full_quota_is_refused(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"can't be written \(File too large\): make room there"):
            check_writable(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_probe_leaves_nothing_behind(tmp_path):
    check_writable(tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    """`check(*arguments)`: exit status of the command and what it said."""

    def call(*arguments: str) -> tuple[int, str]:
        given = [*TINY, f"runs={tmp_path / 'runs'}", *arguments]
        monkeypatch.setattr("sys.argv", ["ldm.preflight", *given])
        try:
            preflight()
        except SystemExit as ended:
            return ended.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call


def test_a_training_that_can_start_says_what_it_writes(check, emoji):
    status, said = check(f"data.root={emoji}")
    assert status == 0
    assert said.startswith("default can start: it writes 0.")


def test_a_missing_shard_is_refused(check, copy_emoji):
    root = copy_emoji()
    next(root.glob("*.tar")).unlink()
    status, said = check(f"data.root={root}")
    assert status == 1
    assert "is missing, its index says" in said


def test_networks_that_are_not_there_are_refused(check, emoji, tmp_path):
    status, said = check(f"data.root={emoji}", f"codec.autoencoder={tmp_path / 'none'}")
    assert status == 1
    assert "there is no bundle at" in said


def test_a_state_takes_the_room_that_is_told(check, emoji, monkeypatch, tmp_path):
    """The need is that of three states of weights, average and two moments, and a bundle."""
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    status, said = check(f"data.root={emoji}")
    assert status == 1
    assert "has 0.01 GB free and this training writes" in said
