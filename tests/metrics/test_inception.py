"""The Inception of 2015 gives what the calculators give, each in its preparation of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from ldm.io.reading import hash_file
from ldm.metrics.networks import CALCULATORS, Inception2015

SIZE = Inception2015.size


def pictures(count, side=48):
    generator = torch.Generator().manual_seed(1)
    return (255 * torch.rand(count, 3, side, side, generator=generator)).byte()


def pillow(channel):
    resized = Image.fromarray(channel.float().numpy()).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).clamp(0, 255)


@pytest.fixture(scope="module")
def ours(inception_path):
    return Inception2015(weights=str(inception_path), sha256=hash_file(inception_path))


@pytest.fixture(scope="module")
def theirs(inception_path):
    return FeatureExtractorInceptionV3(
        "theirs", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_path)
    )


def agree(found, expected):
    """To 1e-3 of the features' own spread: 94 layers of float32, with batch norms folded or not."""
    torch.testing.assert_close(found, expected, atol=1e-3 * expected.std().item(), rtol=0)


def test_features_and_logits_are_torch_fidelitys(ours, theirs):
    images = pictures(3)
    found, (pooled, logits) = ours(images), theirs(images)
    agree(found["inception"], pooled)
    agree(found["inception_logits"], logits)
    assert {name: values.shape[1] for name, values in found.items()} == dict(ours.dims)


def test_torchmetrics_preparation(ours, inception_path, monkeypatch):
    images = pictures(2)
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_path))
    monkeypatch.setattr(ours, "resize", "torchmetrics")
    agree(ours(images)["inception"], theirs(images))


def test_pytorch_fid_preparation(ours, monkeypatch):
    """Their pictures lie in [0, 1], are resized without antialiasing and brought to [-1, 1]."""
    images = pictures(2)
    resized = interpolate(images / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
    monkeypatch.setattr(ours, "resize", "pytorch_fid")
    agree(ours(images)["inception"], ours.trunk(2 * resized - 1).flatten(1))


def test_clean_fid_preparation(ours, monkeypatch):
    """Their pictures are resized by Pillow, each channel as floats, and cut to [0, 255]."""
    images = pictures(2)
    resized = torch.stack([torch.stack([pillow(channel) for channel in image]) for image in images])
    monkeypatch.setattr(ours, "resize", "clean_fid")
    agree(ours(images)["inception"], ours.trunk((resized - 128) / 128).flatten(1))


def test_preparations_give_different_features(ours, monkeypatch):
    images = pictures(1)
    seen = []
    for like in CALCULATORS:
        monkeypatch.setattr(ours, "resize", like)
        seen.append(ours(images)["inception"])
        assert ours.identity.resize == like
    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert (one - other).abs().max() > 1e-2 * one.std()


def test_features_hardly_depend_on_the_batch(ours):
    images = pictures(3)
    alone = torch.cat([ours(image[None])["inception"] for image in images])
    agree(ours(images)["inception"], alone)


def test_other_weights_are_refused_by_their_hash(inception_path):
    with pytest.raises(ValueError, match="expected 6726825d0af5: remove the file and fetch it again"):
        Inception2015(weights=str(inception_path))


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(10, 2048)}, path)
    with pytest.raises(ValueError, match=r"don't fit Sequential: 566 differ, first 'Conv2d_1a_3x3"):
        Inception2015(weights=str(path), sha256=hash_file(path))


def test_an_unknown_calculator_is_refused():
    with pytest.raises(ValueError, match="is not one of torch_fidelity, clean_fid"):
        Inception2015(like="tensorflow")
