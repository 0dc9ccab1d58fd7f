"""States of a network in shards, as SaveStates writes them, go on to the bits of a run without a stop."""

import shutil

import pytest
import torch
from torch import distributed

from ldm.callbacks.ema import EMA
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import is_whole, newest_state, states
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData
from ldm.distributed.ranks import whole_state, world_size
from ldm.distributed.sharding import Sharded

BATCH, STEPS, STOP = 4, 4, 2


@pytest.fixture
def train(make_trainer, small_stage, emoji):
    """`train(folder, seed, save_shards=...)`: weights and average, whole, of a run from the newest state on.

    Args:
        seed: of the weights before the first step.
    """

    def run(folder, seed, *, save_shards):
        count = world_size()
        stage = small_stage(seed)
        pictures = PictureData(root=str(emoji), size=16, batch_size=BATCH // count, seed=3)
        data = LatentData(pictures=pictures, codec=stage.codec)
        saving = SaveStates(folder=str(folder), every=STOP)
        strategy = Sharded(save_shards=save_shards)
        trainer = make_trainer(
            STEPS, EMA(decay=0.5), saving, precision="32-true", devices=count, strategy=strategy
        )
        trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return [whole_state(stage), whole_state(stage.averaged)]

    return run


@pytest.mark.parametrize("save_shards", [False, True])
def test_a_state_goes_on_to_the_same_bits_and_a_damaged_one_is_not_taken(train, ranks, tmp_path, save_shards):
    """Of a run without a stop, and of one that has the first of its two states."""

    def act(rank):
        whole = train(tmp_path / "whole", 5, save_shards=save_shards)
        if rank == 0:
            older, _ = states(tmp_path / "whole")
            shutil.copytree(older, tmp_path / "stopped" / older.name)
        distributed.barrier()
        return [whole, train(tmp_path / "stopped", 6, save_shards=save_shards)]

    together = ranks(act)
    older, newer = states(tmp_path / "whole")
    assert is_whole(older)
    files = sorted(older.rglob("*.distcp"))
    assert len(files) == (2 if save_shards else 0)  # one of each rank
    for expected, found in together:
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], value) for name, value in theirs.items())

    shard = sorted(newer.rglob("*.distcp" if save_shards else "state.ckpt"))[-1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert newest_state(tmp_path / "whole").parent == older
