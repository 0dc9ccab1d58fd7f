"""Random choices of a training: crops, flips, augmentations and captions.

Each is keyed by the seed and the sample's position, so that a resumed run makes the same ones.
"""

import math
import re
from collections.abc import Sequence, Sized
from itertools import permutations
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.data.decode import Box, EncodedPicture, cut, largest
from ldm.randomness import keyed

BLOCK = 8  # a JPEG's; a box that starts on one can be had without decoding the picture in full
VALIDATION_SEED = 0  # of the captions to validate on: the same for every training
CHANNEL_ORDERS = list(permutations(range(3)))
SIDES = re.compile(r"\b(?:left|right)(?:y|s|most|wards?|side|-?hand\w*)?\b|clockwise\b", re.IGNORECASE)


class Crop(Protocol):
    """Chooses the box of a picture; `aspect` is the width over the height of what the box is resized to."""

    def __call__(self, height: int, width: int, *, aspect: float, seed: int, position: int) -> Box:
        """The box, in pixels of the picture."""
        ...


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
    """A box of random shape, size and place, its corner on a multiple of 8 pixels.

    Args:
        area: range of its share of the largest box of its shape, uniform.
        stretch: range of its aspect over the wanted one, uniform in the logarithm.
    """
    # a stream for each number, so that a choice added later changes none of these
    streams = ("crop-area", "crop-shape", "crop-top", "crop-left")
    u, v, down, right = (keyed.real(seed=seed, position=position, stream=each) for each in streams)
    low, high = (math.log(bound) for bound in stretch)
    shape = largest(height, width, aspect=aspect * math.exp(low + v * (high - low)))
    share = math.sqrt(area[0] + u * (area[1] - area[0]))
    box_height, box_width = (max(1, round(share * side)) for side in shape)
    top = int(down * ((height - box_height) // BLOCK + 1)) * BLOCK
    left = int(right * ((width - box_width) // BLOCK + 1)) * BLOCK
    return Box(top, left, box_height, box_width)


def sample_at(
    picture: EncodedPicture,
    captions: Sequence[str],
    *,
    index: int,
    position: int,
    shape: tuple[int, int],
    seed: int,
    crop: Crop,
    flips: bool,
) -> dict[str, Any]:
    """The sample of a position, an element of a `PictureBatch`: the picture, cut to a shape, and a caption.

    `index` is the picture's; with `flips` half of all are mirrored. Raises PictureError: a damaged picture.
    """
    height, width = shape
    box = crop(picture.height, picture.width, aspect=width / height, seed=seed, position=position)
    image = cut(picture, box, height=height, width=width)
    caption = captions[choose(captions, seed=seed, position=position)]
    if flips and flip(seed=seed, position=position, text=caption):
        image = image.flip(-1)
    return {"image": image, "captions": caption, "position": position, "index": index}


def turns_and_colours(images: Tensor, *, seed: int, positions: Tensor) -> Tensor:
    """Each picture turned or mirrored (8 ways) with its colour channels exchanged (6 ways).

    For autoencoders on small sets of drawings: 48 times the pictures, all as plausible as the first. Not for
    photographs, nor where a caption says left or red. uint8 or float, b 3 h w with h = w.
    """
    changed = []
    for image, position in zip(images, positions.tolist(), strict=True):
        choice = keyed.integer(48, seed=seed, position=position, stream="augment")
        turn, order = choice % 8, CHANNEL_ORDERS[choice // 8]
        image = torch.rot90(image, turn % 4, dims=(1, 2))[list(order)]
        changed.append(image.flip(2) if turn >= 4 else image)
    return torch.stack(changed)


def shifts(images: Tensor, *, seed: int, positions: Tensor, reach: int = 4) -> Tensor:
    """Each picture moved by up to `reach` pixels both ways, its edge repeated; uint8 or float, b 3 h w."""
    height, width = images.shape[-2:]
    changed = []
    for image, position in zip(images, positions.tolist(), strict=True):
        choice = keyed.integer((2 * reach + 1) ** 2, seed=seed, position=position, stream="augment")
        down, right = divmod(choice, 2 * reach + 1)
        rows = (torch.arange(height) + down - reach).clamp(0, height - 1)
        columns = (torch.arange(width) + right - reach).clamp(0, width - 1)
        changed.append(image[:, rows][:, :, columns])
    return torch.stack(changed)


def choose(captions: Sized, *, seed: int, position: int) -> int:
    """Number of the caption that a picture has at a position."""
    return keyed.integer(len(captions), seed=seed, position=position, stream="caption")


def names_a_side(caption: str) -> bool:
    """Whether a caption says left or right, which its picture mirrored would contradict.

    Any left or right counts, "left behind" and "right now" too: few captions use the words otherwise, and one
    that is never mirrored loses little: of 155,070 captions of Flickr30k 1,064 name a side, 0.7 %
    (`data_prep.verify` counts them). Lettering that comes out mirrored is accepted.
    """
    return SIDES.search(caption) is not None


def flip(*, seed: int, position: int, text: str) -> bool:
    """Whether the picture at a position is mirrored: with probability 1/2, never if `text` names a side."""
    return not names_a_side(text) and keyed.integer(2, seed=seed, position=position, stream="flip") == 1
