"""Ranks that have the same gradients come to the same weights by Muon's steps."""

import torch

from ldm.stages.muon import Muon
from ldm.stages.optim import parameter_groups


def test_every_rank_comes_to_the_weights_of_one_rank_alone(ranks, build_network, specs):
    def act(_):
        """Weights and momentum after some steps."""
        net = build_network(specs["backbone"], 2)
        optimizer = Muon(parameter_groups(net), lr=0.01, weight_decay=0.1)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        state = [optimizer.state[p]["momentum"] for p in net.parameters() if p.ndim >= 2]
        return [[p.detach() for p in net.parameters()], state]

    alone = act(0)
    for found in ranks(act, 2):
        for ours, theirs in zip(found, alone, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
