"""Moments of a set's latents, beside it: computed once for one autoencoder and one set of pictures.

They are decided by the autoencoder's weights, the pictures' bytes, how they were cut, and whether each was
encoded mirrored, too. Moments are stored, not sampled latents, so the latent is sampled anew every epoch.
"""

from math import prod
from typing import Any

import numpy as np
import torch

from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.data.stored import Recipe, StoredArrays

FLOAT16 = 2  # bytes


def origin_of(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> dict[str, Any]:
    """Everything that decides the moments of a split."""
    return {
        "autoencoder": codec.picture_fingerprint(),
        "pictures": pictures.index.sha256,
        "split": pictures.split,
        "transform": pictures.transform,
        "mirrored": mirrored,
    }


def stored_moments(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> StoredArrays:
    """The moments of each picture of a split, float16, from the disk or computed now."""
    return moments_recipe(pictures, codec, mirrored=mirrored).arrays()


def moments_recipe(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> Recipe:
    """How the moments of a split are computed.

    A row (2, c, h, w) is the mean and the log-variance; if `mirrored`, a second row is of the mirrored one.
    """

    def encode(numbers: range) -> np.ndarray:
        images = torch.stack([pictures.image(number) for number in numbers])
        orientations = [images, images.flip(-1)] if mirrored else [images]
        return torch.stack([codec.moments(each) for each in orientations], dim=1).cpu().numpy()

    rows = 2 if mirrored else 1
    return Recipe(
        pictures=pictures,
        encode=encode,
        chunk=codec.chunk,
        kind="latents",
        name=f"{pictures.size}px",
        origin=origin_of(pictures, codec, mirrored=mirrored),
        bytes_each=rows * 2 * prod(codec.latent_shape(pictures.size)) * FLOAT16,
    )
