"""Random changes of pictures, keyed by position: a resumed run sees the same ones.

Flips heed the caption; `turns_and_colours` and `shifts` are for autoencoders and CLIP on small sets.
"""

import re
from itertools import permutations

import torch
from torch import Tensor

from ldm.data import keyed

CHANNEL_ORDERS = list(permutations(range(3)))
SIDES = re.compile(r"\b(?:left|right)(?:y|s|most|wards?|side|-?hand\w*)?\b|clockwise\b", re.IGNORECASE)


def turns_and_colours(images: Tensor, *, seed: int, positions: Tensor) -> Tensor:
    """Each picture turned or mirrored (8 ways) with its colour channels exchanged (6 ways).

    For autoencoders on small sets of drawings: 48 times the pictures, all as plausible as the first. Not for
    photographs, nor where a caption says left or red. uint8 or float, b 3 h w with h = w.
    """
    changed = []
    for image, position in zip(images, positions.tolist(), strict=True):
        draw = keyed.integer(48, seed=seed, position=position, stream="augment")
        turn, order = draw % 8, CHANNEL_ORDERS[draw // 8]
        image = torch.rot90(image, turn % 4, dims=(1, 2))[list(order)]
        changed.append(image.flip(2) if turn >= 4 else image)
    return torch.stack(changed)


def shifts(images: Tensor, *, seed: int, positions: Tensor, reach: int = 4) -> Tensor:
    """Each picture moved by up to `reach` pixels both ways, its edge repeated; uint8 or float, b 3 h w."""
    height, width = images.shape[-2:]
    changed = []
    for image, position in zip(images, positions.tolist(), strict=True):
        draw = keyed.integer((2 * reach + 1) ** 2, seed=seed, position=position, stream="augment")
        down, right = divmod(draw, 2 * reach + 1)
        rows = (torch.arange(height) + down - reach).clamp(0, height - 1)
        columns = (torch.arange(width) + right - reach).clamp(0, width - 1)
        changed.append(image[:, rows][:, :, columns])
    return torch.stack(changed)


def names_a_side(text: str) -> bool:
    """Whether a caption says left or right, which its picture mirrored would contradict.

    Any left or right counts, "left behind" and "right now" too: few captions use the words otherwise, and one
    that is never mirrored loses little: of 155,070 captions of Flickr30k 1,064 name a side, 0.7 %
    (`data_prep.verify` counts them). Lettering that comes out mirrored is accepted.
    """
    return SIDES.search(text) is not None


def flip(*, seed: int, position: int, text: str) -> bool:
    """Whether the picture at a position is mirrored: a fair draw, or no where the caption names a side."""
    return not names_a_side(text) and keyed.integer(2, seed=seed, position=position, stream="flip") == 1
