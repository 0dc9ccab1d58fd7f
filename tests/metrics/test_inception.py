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
PICTURES = (255 * torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))).byte()


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


@pytest.fixture(scope="module")
def prepared(ours):
    """What ours finds in PICTURES, by whose preparation they get."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for like in CALCULATORS:
            patch.setattr(ours, "resize", like)
            assert ours.identity.resize == like
            found[like] = ours(PICTURES)
    return found


def test_features_and_logits_are_torch_fidelitys(ours, theirs, prepared):
    found, (pooled, logits) = prepared[ours.resize], theirs(PICTURES)
    agree(found["inception"], pooled)
    agree(found["inception_logits"], logits)
    assert {name: values.shape[1] for name, values in found.items()} == dict(ours.dims)


def test_torchmetrics_preparation(prepared, inception_path):
    theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(inception_path))
    agree(prepared["torchmetrics"]["inception"], theirs(PICTURES))


def test_pytorch_fid_preparation(ours, prepared):
    """Their pictures lie in [0, 1], are resized without antialiasing and brought to [-1, 1]."""
    resized = interpolate(PICTURES / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
    agree(prepared["pytorch_fid"]["inception"], ours.trunk(2 * resized - 1).flatten(1))


def test_clean_fid_preparation(ours, prepared):
    """Their pictures are resized by Pillow, each channel as floats, and cut to [0, 255]."""
    resized = torch.stack([torch.stack([pillow(channel) for channel in image]) for image in PICTURES])
    agree(prepared["clean_fid"]["inception"], ours.trunk((resized - 128) / 128).flatten(1))


def test_preparations_give_different_features(prepared):
    seen = [found["inception"] for found in prepared.values()]
    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert (one - other).abs().max() > 1e-2 * one.std()


def test_features_hardly_depend_on_the_batch(ours, prepared):
    alone = torch.cat([ours(image[None])["inception"] for image in PICTURES])
    agree(prepared[ours.resize]["inception"], alone)
