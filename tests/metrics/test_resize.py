"""Each resize mode is the one of the calculator that it is named after."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from ldm.metrics.features import RESIZE_MODES, resize_pictures


def pictures(height, width):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8)


def pillow(channel, size):
    resized = Image.fromarray(channel.float().numpy()).resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).clamp(0, 255)


@pytest.mark.parametrize("sides", [(20, 32), (64, 50)])
def test_tensorflow_mode_is_torch_fidelitys_to_the_bit(sides):
    images = pictures(*sides)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size=(40, 40), align_corners=False)
    assert torch.equal(resize_pictures(images, size=40, mode="tensorflow"), theirs)


@pytest.mark.parametrize("sides", [(20, 32), (64, 50)])
def test_bicubic_mode_is_pillows_on_floats(sides):
    images = pictures(*sides)
    theirs = torch.stack([torch.stack([pillow(channel, 40) for channel in image]) for image in images])
    torch.testing.assert_close(resize_pictures(images, size=40, mode="bicubic"), theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_flat_pictures_stay_flat_and_edges_in_range(mode):
    halves = torch.full((1, 3, 40, 40), 255, dtype=torch.uint8)
    halves[:, :, :, 20:] = 0
    resized = resize_pictures(halves, size=64, mode=mode)
    assert resized.min() >= 0
    assert resized.max() <= 255
    assert resized[0, 0, 0, 0] == pytest.approx(255)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_a_picture_of_the_right_size_is_left_as_it_is(mode):
    images = pictures(24, 24)
    assert torch.equal(resize_pictures(images, size=24, mode=mode), images.float())


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="resize='area' is not one of bilinear, bicubic"):
        resize_pictures(pictures(8, 8), size=16, mode="area")
