"""Facts about the distance between features."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.models.losses import PerceptualDistance


@pytest.fixture
def distance():
    torch.manual_seed(0)
    return PerceptualDistance([nn.Conv2d(3, 6, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2))])


def test_a_picture_is_at_no_distance_from_itself(distance):
    images = torch.rand(3, 3, 12, 12) * 2 - 1
    assert torch.equal(distance(images, images), torch.zeros(3))


def test_the_distance_is_symmetric_positive_and_per_picture(distance):
    ours, theirs = torch.rand(2, 3, 3, 12, 12) * 2 - 1
    both = distance(ours, theirs)
    assert (both > 0).all()
    assert_close(both, distance(theirs, ours))
    assert_close(both[1:2], distance(ours[1:2], theirs[1:2]))


def test_one_stage_is_the_squared_difference_of_unit_vectors():
    identity = PerceptualDistance([nn.Identity()], mean=(0.0,) * 3, std=(1.0,) * 3)
    red, blue = (
        torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 4, 4) for colour in ([1.0, -1, -1], [-1.0, -1, 1])
    )
    assert_close(identity(red, blue), torch.tensor([2.0]))  # orthogonal: |a - b|^2 = 2
    assert_close(identity(red, red * 0.5 - 0.5), torch.tensor([0.0]))  # darker: the same direction


def test_the_features_are_frozen_and_gradients_reach_both_pictures(distance):
    ours, theirs = (torch.rand(1, 3, 12, 12, requires_grad=True) for _ in range(2))
    distance(ours, theirs).sum().backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in distance.parameters())
    assert not distance.stages.training
