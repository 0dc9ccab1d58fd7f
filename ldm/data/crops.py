"""Which part of a picture is seen, and that part at a wanted size, with no more decoded than that takes."""

import math
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ldm.data import keyed
from ldm.data.decode import EncodedPicture

BLOCK = 8  # a JPEG's; a box that starts on one can be had without decoding the picture in full
OVERSAMPLING = 1.4  # of what is decoded over what is wanted, at least


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


class Crop(Protocol):
    """Chooses the box of a picture; `aspect` is the width over the height of what the box is resized to."""

    def __call__(self, height: int, width: int, *, aspect: float, seed: int, position: int) -> Box: ...


def centre(height: int, width: int, *, aspect: float, seed: int = 0, position: int = 0) -> Box:
    """The largest box of its shape, in the middle; nothing is drawn."""
    box_height, box_width = largest(height, width, aspect=aspect)
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def random_resized(
    height: int,
    width: int,
    *,
    aspect: float,
    seed: int,
    position: int,
    area: tuple[float, float] = (0.25, 1.0),
    stretch: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box of drawn shape, size and place, its corner on a multiple of 8 pixels.

    Args:
        area: range of its share of the largest box of its shape, drawn evenly.
        stretch: range of its aspect over the wanted one, drawn evenly in the logarithm.
    """
    draws = ("crop-area", "crop-shape", "crop-top", "crop-left")
    u, v, down, right = (keyed.real(seed=seed, position=position, stream=draw) for draw in draws)
    low, high = (math.log(bound) for bound in stretch)
    shape = largest(height, width, aspect=aspect * math.exp(low + v * (high - low)))
    share = math.sqrt(area[0] + u * (area[1] - area[0]))
    box_height, box_width = (max(1, round(share * side)) for side in shape)
    top, left = (
        int(draw * ((room // BLOCK) + 1)) * BLOCK
        for draw, room in ((down, height - box_height), (right, width - box_width))
    )
    return Box(top, left, box_height, box_width)


def largest(height: int, width: int, *, aspect: float) -> tuple[int, int]:
    """Height and width of the largest box of an aspect (width over height) in a picture."""
    if width > height * aspect:
        return height, max(1, round(height * aspect))
    return max(1, round(width / aspect)), width


def cut(picture: EncodedPicture, box: Box, *, height: int, width: int) -> Tensor:
    """A box of a picture, resized (bicubic, antialiased): uint8, 3 h w.

    A JPEG much larger than wanted is decoded at a half, a quarter or an eighth, if the box starts on a pixel
    of those: its blocks of 8 x 8 frequencies are transformed back to fewer pixels.

    Raises:
        UserError: a damaged or cut picture.
    """
    reduction = _reduction(picture, box, height=height, width=width)
    top, left = box.top // reduction, box.left // reduction
    inner_height, inner_width = box.height / reduction, box.width / reduction  # may end inside a pixel
    pixels = picture.pixels(at_least=(-(-picture.height // reduction), -(-picture.width // reduction)))
    pixels = pixels[top : top + int(np.ceil(inner_height)), left : left + int(np.ceil(inner_width))]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if (box.height, box.width) != (height, width):
        scales = (height / inner_height, width / inner_width)
        image = torch.ops.aten._upsample_bicubic2d_aa(image[None], [height, width], False, *scales)[0]
    return image.contiguous()


def _reduction(picture: EncodedPicture, box: Box, *, height: int, width: int) -> int:
    room = min(box.height / height, box.width / width) / OVERSAMPLING
    fits = (k for k in (8, 4, 2) if k <= room and box.top % k == box.left % k == 0 and picture.reducible)
    return next(fits, 1)
