"""States of a network in shards, as SaveStates writes them, go on to the bits of a run without a stop."""

from functools import partial

import pytest
import torch

from ldm.callbacks.ema import EMA
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import is_whole, newest_state, states
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.distributed.ranks import whole_state, world_size
from ldm.distributed.sharding import Sharded

BATCH, STEPS, STOP = 4, 4, 2


@pytest.fixture
def train(make_trainer, diffusion_stage, emoji):
    """`train(folder, steps, save_shards=...)`: weights and average, whole, from the newest state on."""

    def run(folder, steps, *, save_shards):
        count = world_size()
        stage = diffusion_stage(decay=lambda step: 1.0)
        stage.optimizer = partial(torch.optim.AdamW, lr=1e-3)
        pictures = PictureData(root=str(emoji), size=16, batch_size=BATCH // count, seed=3)
        data = LatentData(pictures=pictures, codec=stage.codec)
        saving = SaveStates(folder=str(folder), every=STOP)
        strategy = Sharded(save_shards=save_shards)
        trainer = make_trainer(
            steps, EMA(decay=0.5), saving, precision="32-true", devices=count, strategy=strategy
        )
        trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return [whole_state(stage), whole_state(stage.averaged)]

    return run


@pytest.mark.parametrize("save_shards", [False, True])
def test_a_state_goes_on_to_the_same_bits(train, ranks, tmp_path, save_shards):
    whole = ranks(lambda _: train(tmp_path / "whole", STEPS, save_shards=save_shards))
    ranks(lambda _: train(tmp_path / "stopped", STOP, save_shards=save_shards))
    (saved,) = states(tmp_path / "stopped")
    assert is_whole(saved)
    assert len(list(saved.rglob("*.distcp"))) == (2 if save_shards else 0)  # one of each rank
    resumed = ranks(lambda _: train(tmp_path / "stopped", STEPS, save_shards=save_shards))
    for found, expected in zip(resumed, whole, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_a_damaged_shard_is_not_taken(train, ranks, tmp_path):
    ranks(lambda _: train(tmp_path, STEPS, save_shards=True))
    older, newer = states(tmp_path)
    shard = sorted(newer.rglob("*.distcp"))[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert newest_state(tmp_path).parent == older
