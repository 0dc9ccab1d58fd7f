"""Facts about loader processes that fail: training ends with a sentence, and soon."""

import os
import signal
import time

import pytest
import torch

from ldm.data import DataError
from ldm.data.datamodule import PictureData
from ldm.data.index import ShardIndex
from ldm.data.stream import Positions, StreamDataset, StreamLoader

FATAL = 40  # the position at which a worker meets its end


def killed(number: int, position: int) -> torch.Tensor:
    if position == FATAL:
        os.kill(os.getpid(), signal.SIGKILL)
    return torch.tensor(position)


def asleep(number: int, position: int) -> torch.Tensor:
    if position == FATAL:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600)
    return torch.tensor(position)


def stopped(number: int, position: int) -> torch.Tensor:
    if position == FATAL:
        os.kill(os.getpid(), signal.SIGSTOP)
    return torch.tensor(position)


@pytest.mark.parametrize(("make", "workers"), [(killed, 1), (killed, 2), (asleep, 2), (stopped, 2)])
def test_a_worker_that_is_killed_or_stuck_ends_the_training_with_a_sentence(make, workers):
    loader = StreamLoader(
        StreamDataset(make, size=50, seed=0),
        Positions(batch_size=4, num_batches=100),
        num_workers=workers,
        patience=1,
    )
    start = time.monotonic()
    with pytest.raises(DataError, match=r"loader process \d+.* for 1 s, after sample \d+ of the"):
        list(loader)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_named_in_one_line(copy_emoji, make_trainer, workers):
    root = copy_emoji()
    shard = ShardIndex.load(root).split("train")[0]
    with (root / shard.file).open("r+b") as stream:
        stream.seek(shard.images[1][0])
        stream.write(b"no picture")
    data = PictureData(root=str(root), size=16, batch_size=4, num_workers=workers)
    data.trainer = make_trainer(6)
    with pytest.raises(DataError) as raised:
        list(data.train_dataloader())
    assert str(raised.value).startswith(
        f"shard {root / shard.file}: sample '{shard.keys[1]}' differs from what"
    )
    assert "\n" not in str(raised.value)


def test_a_set_smaller_than_a_batch_is_refused_with_the_arithmetic(emoji, make_trainer):
    data = PictureData(root=str(emoji), size=16, batch_size=21)
    data.trainer = make_trainer(6)
    with pytest.raises(DataError, match=r"20 samples .* than a batch: 21 a rank on 1 ranks are 21; lower"):
        data.train_dataloader()
