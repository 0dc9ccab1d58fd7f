"""Ranks that have the same gradients come to the same weights by Muon's steps, and share the work."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ldm.stages.muon import Muon
from ldm.stages.optim import parameter_groups


class Operators(TorchDispatchMode):
    """Notes collective calls, and counts the multiplications in products of each shape."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[str] = []
        self.multiplied: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.collectives.append(func.overloadpacket.__name__)
        if func.overloadpacket is torch.ops.aten.baddbmm:
            _, left, right = args
            shape = f"{tuple(left.shape[1:])} by {tuple(right.shape[1:])}"
            self.multiplied[shape] += left.numel() * right.shape[2]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def train(build_network, specs):
    """`train(steps, state)`: weights, state and operators of steps that begin with some weights and state."""

    def run(steps, begun=None):
        net = build_network(specs["backbone"], 2)
        optimizer = Muon(parameter_groups(net), lr=0.01, weight_decay=0.1)
        if begun is not None:
            net.load_state_dict(begun[0])
            optimizer.load_state_dict(begun[1])
        with Operators() as operators:
            for step in steps:
                generator = torch.Generator().manual_seed(step)
                for p in net.parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer.step()
        counts = [operators.collectives, dict(operators.multiplied)]
        return [net.state_dict(), optimizer.state_dict(), counts]

    return run


def assert_equal(ours, theirs) -> None:
    """The same weights and the same state of the optimizer, to the bit."""
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_every_rank_comes_to_the_weights_of_one_rank_alone(ranks, train, count):
    alone = train(range(3))
    for found in ranks(lambda _: train(range(3)), count):
        assert_equal(found, alone)


def test_ranks_continue_a_training_of_one_rank_and_it_theirs(ranks, train):
    whole = train(range(4))
    alone, (together, _) = train(range(2)), ranks(lambda _: train(range(2)))
    assert_equal(train(range(2, 4), together), whole)
    for found in ranks(lambda _: train(range(2, 4), alone)):
        assert_equal(found, whole)


def test_a_matrix_is_made_orthogonal_by_one_rank_and_one_call_a_step_sends_them_all(ranks, train):
    alone, first, second = (found[2] for found in [train(range(3)), *ranks(lambda _: train(range(3)))])
    assert Counter(first[1]) + Counter(second[1]) == alone[1]
    assert 0.4 < sum(first[1].values()) / sum(alone[1].values()) < 0.6
    assert first[0] == second[0] == ["allgather_"] * 3


def test_a_rank_alone_sends_nothing(ranks, train):
    (collectives, multiplied) = ranks(lambda _: train(range(1)), 1)[0][2]
    assert collectives == []
    assert multiplied


def test_more_ranks_than_matrices_and_vectors_alone_step_as_one(ranks):
    def act(_):
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((6, 2, 3, 3), (4,))]
        optimizer = Muon([{"params": [p]} for p in parameters], lr=0.1)
        for number, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
        return [p.detach() for p in parameters]

    alone = act(0)
    for found in ranks(act, 3):
        assert all(torch.equal(a, b) for a, b in zip(found, alone, strict=True))
