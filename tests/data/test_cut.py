"""Facts about crops, and about how near fast decoding comes to the exact picture."""

import io
import math
from functools import cache, partial

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.augment import random_resized
from ldm.data.decode import Box, EncodedPicture, centre, cut, largest
from tests.data.test_decode import encoded

DRAWN = [partial(random_resized, seed=0, position=p) for p in range(50)]


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise with the spectrum of photographs: amplitude 1/f in each direction."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width))
    down, right = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    shaped = np.fft.irfft2(np.fft.rfft2(noise) / (np.hypot(down, right) + 1 / width), s=(height, width))
    values = 127 + 50 * shaped / shaped.std()
    return Image.fromarray(values.clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy())


@cache
def photograph_jpeg(shape: tuple[int, int]) -> bytes:
    return encoded(photograph(*shape), "JPEG", quality=90)


def exact(data: bytes, box: Box, size: int) -> torch.Tensor:
    """All of the picture decoded, then PIL's antialiased bicubic resize of the box."""
    with Image.open(io.BytesIO(data)) as picture:
        part = picture.convert("RGB").crop((box.left, box.top, box.left + box.width, box.top + box.height))
    return torch.from_numpy(np.array(part.resize((size, size), Image.Resampling.BICUBIC))).permute(2, 0, 1)


def psnr(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return 10 * math.log10(255**2 / max((ours.double() - theirs.double()).square().mean().item(), 1e-9))


@pytest.mark.parametrize("crop", [partial(centre, aspect=1.0), *(partial(d, aspect=1.0) for d in DRAWN[:6])])
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (1000, 803)])
@pytest.mark.parametrize("size", [16, 64, 128, 256])
def test_a_cut_is_the_exact_picture(crop, shape, size):
    data = photograph_jpeg(shape)
    picture = EncodedPicture(data)
    box = crop(picture.height, picture.width)
    ours, theirs = cut(picture, box, height=size, width=size), exact(data, box, size)
    assert psnr(ours, theirs) > 35  # noise; photographs come to 40
    assert (ours.double() - theirs.double()).mean(dim=(1, 2)).abs().max() < 1


def test_a_picture_of_the_wanted_size_is_left_alone():
    picture = photograph(64, 64)
    image = cut(EncodedPicture(encoded(picture, "PNG")), Box(0, 0, 64, 64), height=64, width=64)
    assert torch.equal(image, torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    assert image.is_contiguous()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_pictures_that_are_no_jpegs_are_exact_too(kind):
    data = encoded(photograph(90, 133), kind)
    box = centre(90, 133, aspect=1.0)
    assert psnr(cut(EncodedPicture(data), box, height=16, width=16), exact(data, box, 16)) > 45


@pytest.mark.parametrize("aspect", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("shape", [(1, 1), (7, 300), (375, 500), (500, 375)])
def test_boxes_lie_inside_the_picture(aspect, shape):
    for crop in (centre, *DRAWN):
        box = crop(*shape, aspect=aspect)
        assert min(box) >= 0
        assert min(box.height, box.width) >= 1
        assert box.top + box.height <= shape[0]
        assert box.left + box.width <= shape[1]


def test_the_centre_is_the_largest_box_in_the_middle():
    assert centre(375, 500, aspect=1.0) == Box(0, 62, 375, 375)
    assert centre(500, 375, aspect=1.5) == Box(125, 0, 250, 375)


def test_drawn_boxes_have_the_areas_and_shapes_asked_for():
    boxes = [
        random_resized(800, 1000, aspect=1.25, seed=0, position=p, area=(0.5, 0.8), stretch=(0.8, 1.25))
        for p in range(500)
    ]
    stretches = [box.width / box.height / 1.25 for box in boxes]
    whole = [math.prod(largest(800, 1000, aspect=box.width / box.height)) for box in boxes]
    shares = [box.height * box.width / area for box, area in zip(boxes, whole, strict=True)]
    assert 0.79 < min(stretches) < 0.83
    assert 1.21 < max(stretches) < 1.26
    assert abs(np.mean(np.log(stretches))) < 0.03  # five standard errors of a log-uniform draw
    assert 0.49 < min(shares) < 0.51
    assert 0.79 < max(shares) < 0.81
    assert len({(box.top, box.left) for box in boxes}) > 100


def test_a_drawn_box_depends_on_seed_and_position_alone():
    first, again, other, later = (
        random_resized(375, 500, aspect=1.0, seed=seed, position=position)
        for seed, position in ((1, 5), (1, 5), (2, 5), (1, 6))
    )
    assert first == again
    assert len({first, other, later}) == 3


def test_parts_that_are_the_whole_range_are_the_largest_box():
    box = random_resized(375, 500, aspect=1.0, seed=0, position=0, area=(1.0, 1.0), stretch=(1.0, 1.0))
    assert (box.height, box.width) == (375, 375)
