"""What a job is refused for at its start, in one sentence."""

import re
import resource
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.optim import AdamW
from torch.utils._pytree import tree_leaves

from ldm.callbacks.ema import EMA
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.planning.checks import Need, check_needs, needs_of
from ldm.preflight import check_tasks
from ldm.stages.soap import Soap

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


@pytest.fixture
def needs(diffusion_stage, copy_emoji, tmp_path):
    """`needs(**options)`: what a training of a denoiser would write, its data in a folder of its own."""
    root = str(copy_emoji())

    def make(**options) -> list[Need]:
        pictures = PictureData(root=root, size=16, batch_size=4, **options)
        stage = diffusion_stage()
        return needs_of(stage, LatentData(pictures=pictures, codec=stage.codec), str(tmp_path / "runs"))

    return make


def test_the_room_that_latents_and_texts_take_is_known_before_they_are_written(
    needs, diffusion_stage, make_trainer, tmp_path
):
    cache, run = needs(cache=str(tmp_path / "cache"))
    assert run.place == f"runs={tmp_path / 'runs'}"
    pictures = PictureData(root=str(tmp_path / "emoji"), size=16, batch_size=4, cache=str(tmp_path / "cache"))
    stage = diffusion_stage()
    make_trainer(1).fit(stage, LatentData(pictures=pictures, codec=stage.codec))
    written = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert cache.num_bytes / 2 < written < 2 * cache.num_bytes
    assert [need.place for need in needs(cache=str(tmp_path / "cache"))] == [run.place]  # all is there


@pytest.mark.parametrize("optimizer", [AdamW, Soap])
def test_the_room_of_a_checkpoint_counts_what_its_optimizer_keeps(
    diffusion_stage, make_trainer, latents, tmp_path, optimizer
):
    stage = diffusion_stage(optimizer=partial(optimizer, lr=1e-3))
    weights = sum(parameter.nbytes for parameter in stage.parameters())
    trainer = make_trainer(1, EMA(decay=0.9))
    trainer.fit(stage, latents)
    trainer.save_checkpoint(tmp_path / "saved")
    (run,) = needs_of(stage, None, str(tmp_path))
    leaves = tree_leaves(torch.load(tmp_path / "saved", weights_only=True))
    kept = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
    assert kept == pytest.approx((run.num_bytes - weights) / 3, rel=0.01)  # AdamW counts steps by tensor


def test_disks_without_room_are_refused(needs, monkeypatch, tmp_path):
    cache, run = needs()
    usage = shutil.disk_usage(tmp_path)

    def free(number: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=number))

    free(cache.num_bytes + run.num_bytes)
    check_needs([cache, run])
    free(cache.num_bytes + run.num_bytes - 1)
    with pytest.raises(
        ValueError, match=r"runs=\S+ has .* the training writes .* checkpoints and bundle there"
    ):
        check_needs([cache, run])
    free(cache.num_bytes - 1)
    with pytest.raises(ValueError, match=r"data.root=\S+ has .* MB of latents and texts there: make room"):
        check_needs([cache, run])


def test_a_full_quota_is_refused(needs):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ValueError, match=r"can't be written \(File too large\), and the training writes"):
            check_needs(needs())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_probe_leaves_nothing_behind(needs, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    check_needs(needs(cache=str(tmp_path / "a" / "b")))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def call(command, tmp_path):
    """`call(module, *arguments)`: exit status of a command and what it said."""

    def run(module, *arguments: str) -> tuple[int, str]:
        ended = command(module, *TINY, f"runs={tmp_path / 'runs'}", *arguments, status=None)
        return ended.status, ended.err if ended.status else ended.out

    return run


@pytest.fixture
def check(call):
    """`check(*arguments)`: exit status of the preflight and what it said."""
    return partial(call, "ldm.preflight")


def test_a_folder_that_can_not_be_written_is_refused_by_all_and_leaves_no_run(
    call, copy_emoji, tiny_backbone, tmp_path
):
    root = copy_emoji()
    before = sorted(root.rglob("*"))
    small = ("steps=1", *tiny_backbone, "trainer.precision=32", f"data.root={root}")
    for module, options in (("ldm.preflight", ()), ("ldm.train", ("dry_run=true",)), ("ldm.train", ())):
        status, said = call(module, *small, "data.cache=/proc/nowhere", *options)
        assert status == 1
        assert "data.cache=/proc/nowhere can't be written" in said
        assert "MB of latents and texts there: name a folder for them with data.cache=<folder>" in said
    assert not (tmp_path / "runs").exists()
    status, _ = call("ldm.train", *small, f"data.cache={tmp_path / 'cache'}")
    assert status == 0
    assert sorted(root.rglob("*")) == before


def test_a_set_without_pictures_to_validate_on_is_trained_on_and_said(
    call, write_emoji, tiny_backbone, tmp_path
):
    index = write_emoji(tmp_path / "data")
    train_only = tuple(shard for shard in index.shards if shard.split == "train")
    replace(index, shards=train_only).save()
    small = ("steps=2", *tiny_backbone, "trainer.val_check_interval=1", f"data.root={index.root}")
    status, said = call("ldm.train", *small)
    assert status == 0
    assert "has no pictures to validate on: trained without validation (to hold some out, prepare" in said
    for module in ("ldm.preflight", "ldm.train"):
        status, said = call(module, *small, "target=0.5")
        assert status == 1
        assert "target=0.5 is a validation loss, and the data have no pictures to validate on" in said


def test_a_target_that_no_validation_meets_is_refused(check, emoji):
    small = ("steps=4", "trainer.val_check_interval=9", "target=0.5", f"data.root={emoji}")
    status, said = check(*small, "trainer.accumulate_grad_batches=2")
    assert status == 1
    assert "trainer.val_check_interval=9 leaves no validation in 8 batches: write a smaller one" in said
    assert check(*small, "trainer.accumulate_grad_batches=3")[0] == 0


def test_a_training_that_can_start_says_what_it_writes(check, emoji):
    status, said = check(f"data.root={emoji}")
    assert status == 0
    assert re.match(r"default can start: it writes \d+\.\d MB of (latents|checkpoints)", said)


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


def test_a_disk_without_room_for_the_checkpoints_is_refused(check, emoji, monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=10 * 2**20)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    status, said = check(f"data.root={emoji}")
    assert status == 1
    assert "MB free for it, and the training writes" in said
