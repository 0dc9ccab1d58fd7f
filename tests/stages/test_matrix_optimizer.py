"""Facts about what Muon and SOAP share."""

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from torch.testing import assert_close

from ldm.stages.matrix_optimizer import balanced
from ldm.stages.muon import Muon
from ldm.stages.optim import parameter_groups
from ldm.stages.soap import Soap

KINDS = [Muon, lambda *groups, **options: Soap(*groups, **options, every=2)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_vector_is_adamws(kind):
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    settings = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}
    mine, reference = kind([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(7)
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert_close(ours, theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_goes_on_to_the_bit(kind):
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))

    def train(net: nn.Module, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()

    whole, first, second = network(), network(), network()
    train(whole, kind(parameter_groups(whole), lr=0.01), range(6))
    stopped = kind(parameter_groups(first), lr=0.01)
    train(first, stopped, range(3))
    second.load_state_dict(first.state_dict())
    resumed = kind(parameter_groups(second), lr=0.01)
    resumed.load_state_dict(stopped.state_dict())
    train(second, resumed, range(3, 6))
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closure_is_called_with_gradients_and_its_value_returned(kind):
    parameter = nn.Parameter(torch.ones(3, 3))
    optimizer = kind([parameter], lr=0.1)

    def closure() -> float:
        parameter.square().sum().backward()
        return 7.0

    assert [optimizer.step(closure), optimizer.step(closure)] == [7.0, 7.0]  # SOAP's first moves nothing
    assert not torch.equal(parameter, torch.ones(3, 3))


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_shares_cost_the_same_up_to_one_item(count):
    costs = [number**3 % 41 for number in range(24)]
    shares = balanced(enumerate(costs), count, cost=lambda item: item[1])
    loads = [sum(cost for _, cost in share) for share in shares]
    assert len(shares) == count
    assert sorted(item for share in shares for item in share) == [*enumerate(costs)]
    assert max(loads) - min(loads) <= max(costs)
