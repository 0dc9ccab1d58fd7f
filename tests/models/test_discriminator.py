"""Facts about the patch discriminator and its losses."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.models.losses import PatchDiscriminator, adaptive_weight, hinge_loss


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_nothing_else(layers, patch):
    net = PatchDiscriminator(channels=4, layers=layers)
    for module in net.modules():
        if isinstance(module, nn.GroupNorm):  # its statistics are of the whole picture
            module.forward = lambda x: x
    images = torch.zeros(1, 3, 160, 160, requires_grad=True)
    logits = net(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = images.grad.abs().sum(dim=(0, 1, 3)).nonzero()
    assert (rows.max() - rows.min() + 1).item() == patch


def test_there_is_one_logit_a_patch():
    assert PatchDiscriminator(channels=8, layers=2)(torch.rand(2, 3, 64, 64)).shape == (2, 1, 14, 14)


def test_the_hinge_loss_stops_where_both_sides_are_clear():
    ones = torch.ones(2, 1, 3, 3)
    assert hinge_loss(ones, -ones) == 0
    assert hinge_loss(5 * ones, -5 * ones) == 0
    assert hinge_loss(0 * ones, 0 * ones) == 1
    assert hinge_loss(-ones, ones) == 2


@pytest.mark.parametrize("factor", [0.1, 1.0, 20.0])
def test_the_adaptive_weight_balances_the_gradients(factor):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 3, padding=1)
    images = torch.rand(2, 3, 8, 8)
    made = layer(images)
    reconstruction, adversarial = (made - images).abs().mean(), factor * made.square().mean()
    weight = adaptive_weight(reconstruction, adversarial, layer.weight)
    assert not weight.requires_grad
    norms = [
        torch.autograd.grad(loss, layer.weight, retain_graph=True)[0].norm()
        for loss in (reconstruction, adversarial)
    ]
    assert_close(weight * norms[1], norms[0], rtol=1e-2, atol=0)


def test_the_adaptive_weight_is_bounded_where_the_adversary_has_no_gradient():
    layer = nn.Conv2d(3, 3, 1)
    made = layer(torch.rand(1, 3, 4, 4))
    assert adaptive_weight(1e6 * made.square().mean(), 0 * made.mean(), layer.weight) == 1e4


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_pictures_without_a_whole_patch_are_refused(layers):
    discriminator, least = PatchDiscriminator(channels=2, layers=layers), 3 * 2**layers
    assert discriminator(torch.zeros(1, 3, least, least)).shape[2:] == (1, 1)
    with pytest.raises(ValueError, match=f"{least}x{least - 1} pixels, needs {least}"):
        discriminator(torch.zeros(1, 3, least, least - 1))
