"""Facts about what ranks tell each other."""

import torch
from torch.testing import assert_close

from ldm.distributed import ranks as distributed
from ldm.distributed.ranks import all_gather, any_rank, average, broadcast, is_first, rank, world_size


def test_ranks_know_each_other(ranks):
    found = ranks(
        lambda number: [rank(), world_size(), is_first(), broadcast(number + 5), all_gather(number)], 3
    )
    assert found == [[number, 3, number == 0, 5, [0, 1, 2]] for number in range(3)]


def test_a_flag_of_one_is_known_to_all(ranks):
    found = ranks(lambda number: any_rank(torch.tensor([number == 1, number > 5, True])).tolist())
    assert found == [[True, False, True]] * 2


def test_tensors_of_any_shape_are_averaged(ranks):
    def act(number):
        torch.manual_seed(number)
        tensors = [torch.randn(3, 2), torch.randn(()), torch.randn(4)]
        before = [tensor.clone() for tensor in tensors]
        average(tensors)
        return [before, tensors]

    found = ranks(act)
    for own, other, mean in zip(found[0][0], found[1][0], found[0][1], strict=True):
        assert_close(mean, (own + other) / 2)
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


def test_one_process_needs_no_others():
    distributed.join()
    tensor = torch.ones(2)
    average([tensor])
    assert (rank(), world_size(), is_first(), broadcast(3), all_gather(3)) == (
        0,
        1,
        True,
        3,
        [3],
    )
    assert any_rank(torch.tensor([True, False])).tolist() == [True, False]
    assert torch.equal(tensor, torch.ones(2))
    distributed.leave()


def test_the_end_of_a_rank_is_told_from_other_errors(ranks):
    def act(number):
        if number == 1:
            torch.distributed.destroy_process_group()
            return True
        try:
            all_gather(number)
        except RuntimeError as error:
            return distributed.is_lost(error) and not distributed.is_lost(RuntimeError("out of paper"))

    assert ranks(act) == [True, True]
