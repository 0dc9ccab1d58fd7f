"""Facts about SOAP."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ldm.stages.soap import Soap, rotated


@pytest.fixture(autouse=True)
def float64():
    """Adam makes steps of roundings where a gradient is about 0: those of float64 are far below eps."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def orthogonal(side: int) -> Tensor:
    return torch.linalg.qr(torch.randn(side, side)).Q


def trained(start: Tensor, gradient: Callable[[Tensor, int], Tensor], *, steps: int, **options) -> Tensor:
    """Where a parameter is after some steps."""
    parameter = nn.Parameter(start.clone())
    optimizer = Soap([parameter], **({"lr": 0.05, "eps": 1e-6} | options))
    for step in range(steps):
        parameter.grad = gradient(parameter.detach(), step)
        optimizer.step()
    return parameter.detach()


def adam(
    start: Tensor, gradient: Callable[[Tensor, int], Tensor], *, steps: int, eps: float = 1e-6
) -> Tensor:
    """The same by torch's AdamW, without the first step, which SOAP does not take."""
    parameter = nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.05, eps=eps, betas=(0.95, 0.95), weight_decay=0.0)
    for step in range(1, steps):
        parameter.grad = gradient(parameter.detach(), step)
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("every", [1, 3])
def test_on_a_quadratic_it_is_adam_in_the_eigenbases(every):
    """f(W) = tr(W' A W B) / 2 from a start whose singular vectors are the eigenvectors of A and B."""
    left, right, start = orthogonal(4), orthogonal(4), torch.diag(torch.rand(4) + 1)
    a, b = torch.tensor([4.0, 3, 2, 1]), torch.tensor([3.0, 2.5, 2, 1])
    options = {"steps": 12, "eps": 1.0}  # so large that roundings in directions without a gradient die out
    ours = trained(
        left @ start @ right.T,
        lambda w, _: left @ torch.diag(a) @ left.T @ w @ right @ torch.diag(b) @ right.T,
        every=every,
        **options,
    )
    theirs = adam(start, lambda w, _: a.outer(b) * w, **options)
    assert_close(ours, left @ theirs @ right.T, atol=1e-10, rtol=0)
    assert (theirs - start).norm() > 0.3


def test_turned_gradients_turn_the_training():
    """Adam's does not; the bases change in between."""
    left, right, gradients = orthogonal(5), orthogonal(5), torch.randn(12, 5, 5)
    plain = trained(torch.zeros(5, 5), lambda _, step: gradients[step], steps=12, every=2)
    turned = trained(torch.zeros(5, 5), lambda _, step: left @ gradients[step] @ right.T, steps=12, every=2)
    assert_close(turned, left @ plain @ right.T, atol=1e-6, rtol=0)


def test_without_bases_it_is_adam():
    start, gradients = torch.randn(5, 3), torch.randn(6, 5, 3)
    ours = trained(start, lambda _, step: gradients[step], steps=6, largest=2)
    assert_close(ours, adam(start, lambda _, step: gradients[step], steps=6))


def test_the_first_gradient_moves_nothing():
    start = torch.randn(3, 4, 2, 2)
    assert torch.equal(trained(start, lambda w, _: w, steps=1), start)
    assert not torch.equal(trained(start, lambda w, _: w, steps=2), start)


def test_a_kernel_of_one_place_is_a_matrix():
    start, gradients = torch.randn(4, 3), torch.randn(7, 4, 3)
    matrix = trained(start, lambda _, step: gradients[step], steps=7, every=2)
    kernels = gradients.view(7, 4, 3, 1, 1)
    kernel = trained(start.view(4, 3, 1, 1), lambda _, step: kernels[step], steps=7, every=2)
    assert_close(kernel.view(4, 3), matrix)


def test_there_and_back_is_the_same():
    x, bases = torch.randn(3, 4, 2), [orthogonal(3), None, orthogonal(2)]
    along = rotated(x, bases)
    assert_close(along, torch.einsum("ijk, ia, kc -> ajc", x, bases[0], bases[2]))
    assert_close(rotated(along, bases, back=True), x)


def test_the_bytes_of_its_state_are_known_before_it_has_one():
    shapes = [(6, 4, 3, 3), (9, 5), (1, 7), (8,), ()]
    parameters = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = Soap(parameters, lr=0.1, largest=8)
    promised = optimizer.state_bytes
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    kept = [
        value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    ]
    assert promised == sum(tensor.nbytes for tensor in kept)
