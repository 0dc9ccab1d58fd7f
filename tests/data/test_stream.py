"""Facts about the order of training samples."""

import pytest
import torch

from ldm.data.stream import Positions, StreamDataset, StreamLoader

SIZE = 20


def pair(number: int, position: int) -> torch.Tensor:
    return torch.tensor([number, position])


def loader(*, batches: int = 12, batch_size: int = 3, rank: int = 0, world: int = 1, workers: int = 0):
    positions = Positions(batch_size=batch_size, num_batches=batches, rank=rank, world_size=world)
    return StreamLoader(StreamDataset(pair, size=SIZE, seed=7), positions, num_workers=workers)


def rows(batches) -> list[list[int]]:
    return torch.cat(list(batches)).tolist()


def test_each_epoch_meets_every_sample_once():
    numbers = [number for number, _ in rows(loader(batches=20))]
    epochs = [numbers[:20], numbers[20:40], numbers[40:]]
    assert all(sorted(epoch) == list(range(SIZE)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_positions_count_the_samples():
    assert [position for _, position in rows(loader())] == list(range(36))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers):
    assert rows(loader(workers=workers)) == rows(loader(workers=0))


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 1), (2, 2), (2, 4), (3, 0)])
def test_ranks_share_out_the_order_of_one_process(world, workers):
    whole = rows(loader(batch_size=6, batches=6))
    ranks = [
        rows(loader(batch_size=6 // world, batches=6, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    assert {len(own) for own in ranks} == {36 // world}
    dealt_back = [ranks[place % world][place // world] for place in range(36)]
    assert dealt_back == whole


# 20 samples in batches of 3: epochs end inside a batch
ALONE = [(done, 0, 0, world) for done in (1, 6, 7, 12) for world in (1, 2)]
WITH_PROCESSES = [
    *((7, 1, 0, 1), (12, 1, 0, 2)),
    *((1, 2, 4, 1), (6, 2, 4, 2)),
    *((1, 4, 2, 1), (7, 4, 2, 2)),
]


@pytest.mark.parametrize(("done", "workers", "then", "world"), [*ALONE, *WITH_PROCESSES])
def test_a_loaded_state_goes_on_where_it_was_taken(done, workers, then, world):
    first = loader(workers=workers, world=world)
    iterator = iter(first)
    before = [next(iterator) for _ in range(done)]
    second = loader(workers=then, world=world)
    second.load_state_dict(first.state_dict())
    after = list(second)
    assert rows(before + after) == rows(loader(world=world))


def test_the_state_is_the_number_of_samples_consumed_by_all_ranks():
    one = loader(rank=1, world=2)
    iterator = iter(one)
    next(iterator)
    assert one.state_dict() == {"position": 6, "batches": 1}


def test_a_loader_keeps_the_length_of_the_whole_training():
    one = loader()
    one.load_state_dict({"position": 30})
    assert len(one) == 12
    assert len(list(one)) == 2


def test_the_seed_is_in_the_order():
    other = StreamDataset(pair, size=SIZE, seed=8)
    first = StreamDataset(pair, size=SIZE, seed=7)
    assert [first.number(p) for p in range(SIZE)] != [other.number(p) for p in range(SIZE)]
