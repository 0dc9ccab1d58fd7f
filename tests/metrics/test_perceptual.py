"""The perceptual distance over an ImageNet network."""

import torch

from ldm.metrics.networks import efficientnet_lite0


def test_equal_pictures_are_at_distance_zero_and_a_shift_is_nearer_than_noise():
    distance = efficientnet_lite0(size=64)
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64).contiguous()
    picture = ramp * ramp.transpose(2, 3)
    shifted, noisy = picture.roll(1, dims=3), picture + 0.5 * torch.randn_like(picture)
    assert torch.equal(distance(picture, picture), torch.zeros(2))
    assert (distance(picture, shifted) < distance(picture, noisy)).all()


def test_the_gradient_reaches_the_picture_and_not_the_network():
    distance = efficientnet_lite0(size=64)
    picture = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance(picture, torch.rand(1, 3, 64, 64)).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert all(p.grad is None for p in distance.parameters())
