"""Pictures themselves in the place of features, for measures that look at pixels."""

from collections.abc import Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import UserError
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.resize import resize_pictures


class Pixels:
    """The features `pixels`: a picture's values in [0, 255], channel by channel, in whole numbers.

    Args:
        size: side in pixels that pictures are brought to, bicubically and rounded; one of this size stays as
            it is.

    Raises:
        UserError: a size below 1.
    """

    def __init__(self, *, size: int) -> None:
        if size < 1:
            raise UserError(f"{size=} of the pictures to compare must be at least 1 pixel")
        self.dims: Mapping[str, int] = {"pixels": 3 * size**2}
        self.identity = FeatureIdentity(
            name="pixels", sha256="no weights", size=size, resize="bicubic", rounded=True
        )

    def to(self, device: torch.device) -> "Pixels":
        """Itself: nothing of it is on a device."""
        return self

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        resized = resize_pictures(images, size=self.identity.size, mode=self.identity.resize)
        return {"pixels": resized.round().flatten(1)}


def as_pictures(pixels: Float[Tensor, "b d"]) -> UInt8[Tensor, "b 3 s s"]:
    """Pictures out of the features `pixels`."""
    size = round((pixels.shape[1] / 3) ** 0.5)
    return pixels.to(torch.uint8).unflatten(1, (3, size, size))
