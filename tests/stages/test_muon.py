"""Facts about Muon."""

import pytest
import torch
from torch import nn

from ldm.stages.muon import Muon, orthogonal


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


def test_a_kernel_is_the_matrix_of_its_outputs():
    kernel, matrix = nn.Parameter(torch.zeros(8, 4, 3, 3)), nn.Parameter(torch.zeros(8, 36))
    gradient = torch.randn(8, 4, 3, 3)
    for parameter, shape in ((kernel, kernel.shape), (matrix, matrix.shape)):
        parameter.grad = gradient.view(shape).clone()
        Muon([parameter], lr=0.1).step()
    assert torch.equal(kernel.view(8, 36), matrix)
