"""Moments of a set's latents, beside it: computed once for one autoencoder and one set of pictures.

They are decided by the autoencoder's weights, the pictures' bytes, how they were cut, and whether each was
encoded mirrored, too. Moments are stored, not sampled latents, so the latent is sampled anew every epoch.
"""

from typing import Any

import numpy as np
import torch

from ldm.codec import PICTURE_CHUNK, Codec
from ldm.data.pictures import PictureDataset
from ldm.data.stored import StoredArrays, folder_of, stored_arrays


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
    """The moments of each picture of a split, float16, from the disk or computed now.

    A row (2, c, h, w) is the mean and the log-variance; if `mirrored`, a second row is of the mirrored one.
    """

    def encode(numbers: range) -> np.ndarray:
        images = torch.stack([pictures.image(number) for number in numbers])
        orientations = [images, images.flip(-1)] if mirrored else [images]
        return torch.stack([codec.moments(each) for each in orientations], dim=1).cpu().numpy()

    origin = origin_of(pictures, codec, mirrored=mirrored)
    folder = folder_of(pictures, "latents", f"{pictures.size}px", origin)
    return stored_arrays(pictures, encode, kind="latents", folder=folder, origin=origin, chunk=PICTURE_CHUNK)
