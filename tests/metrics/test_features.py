import dataclasses

import pytest
import torch

from ldm.metrics.networks import EfficientNetLite0


@pytest.fixture(scope="module")
def extractor():
    return EfficientNetLite0(size=64)


def pictures(count, side=64):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def seen(extractor, images):
    return extractor(images)["efficientnet_lite0"]


def test_same_picture_same_features_to_the_bit(extractor):
    images = pictures(3)
    first, second = seen(extractor, images), seen(EfficientNetLite0(size=64), images)
    assert first.shape == (3, extractor.dims["efficientnet_lite0"])
    assert torch.equal(first, second)


def test_features_hardly_depend_on_the_batch_and_not_on_training_mode(extractor):
    images = pictures(4)
    alone = torch.cat([seen(extractor.train(), image[None]) for image in images])
    torch.testing.assert_close(seen(extractor, images), alone, atol=1e-4, rtol=1e-4)


def test_weights_are_the_imagenet_ones(extractor):
    """A flat red picture and a flat blue one differ more than two noisy ones: the network sees."""
    colours = (
        torch.tensor([[220, 30, 30], [30, 30, 220]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 64, 64)
    )
    noise = pictures(2)
    red_blue, noisy = (
        torch.cosine_similarity(*seen(extractor, each)[:, None]).item() for each in (colours, noise)
    )
    assert noisy > red_blue


def test_identity_tells_size_and_resize_mode(extractor):
    identity = extractor.identity
    other = EfficientNetLite0(size=96, resize="bilinear").identity
    assert dataclasses.replace(identity, size=96, resize="bilinear") == other
    assert identity.name == "efficientnet_lite0"


@pytest.mark.parametrize(
    ("options", "sentence"), [({"size": 50}, "multiple of 32"), ({"resize": "area"}, "bicubic")]
)
def test_impossible_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        EfficientNetLite0(**options)


def test_changed_weights_are_refused(monkeypatch):
    monkeypatch.setattr(EfficientNetLite0, "sha256", "0" * 64)
    with pytest.raises(ValueError, match="expected 000000000000: reinstall"):
        EfficientNetLite0()
