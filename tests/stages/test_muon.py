"""Facts about Muon."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.stages.muon import Muon, orthogonal
from ldm.stages.optim import parameter_groups


@pytest.mark.parametrize("shape", [(3, 24, 24), (2, 16, 64), (2, 64, 16)])
def test_singular_vectors_stay_and_singular_values_come_near_1(shape):
    matrices = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonal(matrices, iterations=5) @ right.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    kept = values > 0.1 * values.max()  # smaller ones take more iterations
    assert diagonal[kept].min() > 0.6
    assert diagonal[kept].max() < 1.3
    assert (found - torch.diag_embed(diagonal)).abs().max() < 5 * 4 * 2**-8  # 5 iterations, 4 roundings each


def test_a_step_of_a_matrix_is_that_of_torchs_muon():
    ours, theirs = (nn.Parameter(torch.ones(24, 40)) for _ in range(2))
    settings = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    mine = Muon([ours], **settings)
    reference = torch.optim.Muon([theirs], **settings, nesterov=True, adjust_lr_fn="match_rms_adamw")
    for _ in range(5):
        gradient = torch.randn(24, 40)
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved, apart = (theirs - 1).norm(), (ours - theirs).norm()
    assert apart < 0.02 * moved  # five steps, each with a few roundings of 2**-8


def test_a_step_of_a_vector_is_adamws():
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    settings = {"lr": 0.02, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.1}
    mine, reference = Muon([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(5):
        gradient = torch.randn(7)
        for parameter, optimizer in ((ours, mine), (theirs, reference)):
            parameter.grad = gradient.clone()
            optimizer.step()
    assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_a_kernel_is_the_matrix_of_its_outputs():
    kernel, matrix = nn.Parameter(torch.zeros(8, 4, 3, 3)), nn.Parameter(torch.zeros(8, 36))
    gradient = torch.randn(8, 4, 3, 3)
    for parameter, shape in ((kernel, kernel.shape), (matrix, matrix.shape)):
        parameter.grad = gradient.view(shape).clone()
        Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.view(8, 36), matrix)


def test_a_loaded_state_goes_on_to_the_bit():
    def network() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 1))

    def train(net: nn.Module, optimizer: Muon, steps: range) -> None:
        for step in steps:
            images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()

    whole, first, second = network(), network(), network()
    train(whole, Muon(parameter_groups(whole), lr=0.01), range(6))
    stopped = Muon(parameter_groups(first), lr=0.01)
    train(first, stopped, range(3))
    second.load_state_dict(first.state_dict())
    resumed = Muon(parameter_groups(second), lr=0.01)
    resumed.load_state_dict(stopped.state_dict())
    train(second, resumed, range(3, 6))
    for ours, theirs in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_closure_is_called_with_gradients_and_its_value_returned():
    parameter = nn.Parameter(torch.ones(3, 3))
    optimizer = Muon([parameter], lr=0.1)

    def closure() -> float:
        parameter.square().sum().backward()
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert not torch.equal(parameter, torch.ones(3, 3))
