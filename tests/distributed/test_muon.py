"""Ranks share the work of Muon's steps and come to the same weights."""

import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from ldm.distributed.ranks import world_size
from ldm.stages.muon import Muon, orthogonal
from ldm.stages.optim import parameter_groups

STEPS = 3


def test_each_rank_makes_its_share_orthogonal_and_all_come_to_the_same_weights(ranks, build_network, specs):
    def act(_):
        """Weights and momentum after some steps, and the operations that they took here."""
        net = build_network(specs["backbone"], 2)
        optimizer = Muon(parameter_groups(net), lr=0.01, weight_decay=0.1)
        with FlopCounterMode(display=False) as counter:
            for step in range(STEPS):
                generator = torch.Generator().manual_seed(step)
                for p in net.parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer.step()
        state = [optimizer.state[p]["momentum"] for p in net.parameters() if p.ndim >= 2]
        return [[p.detach() for p in net.parameters()], state, counter.get_total_flops()]

    weights, momentum, operations = act(0)
    matrices = [p for p in weights if p.ndim >= 2]
    largest = max(matrices, key=lambda p: max(p.flatten(1).shape) * min(p.flatten(1).shape) ** 2)
    with FlopCounterMode(display=False) as counter:
        orthogonal(largest.flatten(1)[None], iterations=5)
    dearest = STEPS * counter.get_total_flops()
    for count in (2, 3):
        together = ranks(act, count)
        for found in together:
            assert_close(found[0], weights, rtol=0, atol=STEPS * 0.01 * 2**-8)  # a rounding of each direction
            assert all(torch.equal(a, b) for a, b in zip(found[1], momentum, strict=True))
            assert all(torch.equal(a, b) for a, b in zip(found[0], together[0][0], strict=True))
        shares = [found[2] for found in together]
        assert sum(shares) == operations
        assert max(shares) <= operations / count + dearest  # Graham 1969: never further from even


def test_one_rank_among_no_others_makes_all(build_network, specs):
    assert world_size() == 1
    net = build_network(specs["backbone"], 2)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in net.parameters()]
    Muon(parameter_groups(net), lr=0.01).step()
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
