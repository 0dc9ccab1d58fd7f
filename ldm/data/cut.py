"""Part of an encoded picture at a wanted size, with no more decoded than that takes."""

import numpy as np
import torch
from torch import Tensor

from ldm.data.crops import Box
from ldm.data.decode import EncodedPicture

OVERSAMPLING = 1.4  # of what is decoded over what is wanted, at least


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
