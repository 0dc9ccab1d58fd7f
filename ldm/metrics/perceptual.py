"""Distances of pairs of pictures, and a perceptual one that needs no download."""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from ldm.metrics.features import EfficientNetLite0
from ldm.models.perceptual import PerceptualDistance

PictureDistance = Callable[[Tensor, Tensor], Tensor]  # b 3 h w in [-1, 1], twice -> b
CUTS = (1, 3, 5, 11)  # blocks of EfficientNet-lite0 after which the resolution falls, from 1/2 to 1/16


@runtime_checkable
class NamedDistance(Protocol):
    """A `PictureDistance` that says what its numbers are called, so that no config can misname it."""

    name: str

    def __call__(self, ours: Tensor, theirs: Tensor, /) -> Tensor: ...


class EfficientNetDistance(PerceptualDistance):
    """Perceptual distance over EfficientNet-lite0, as `efficientnet_lite0` makes it."""

    name: ClassVar[str] = "perceptual_efficientnet_lite0"


def efficientnet_lite0(*, size: int = 64) -> EfficientNetDistance:
    """Distance in the feature maps of EfficientNet-lite0 (weights: `EfficientNetLite0`), at five depths.

    Args:
        size: side of the pictures in pixels, a multiple of 32.
    """
    extractor = EfficientNetLite0(size=size)
    net = extractor.net
    stages = [nn.Sequential(net._conv_stem, net._bn0, net._swish)]
    stages += [nn.Sequential(*net._blocks[a:b]) for a, b in zip((0, *CUTS), CUTS, strict=False)]
    return EfficientNetDistance(stages, mean=[extractor.mean] * 3, std=[extractor.std] * 3)
