"""Perceptual distances of pairs of pictures: LPIPS, and one whose network needs no download."""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from ldm.metrics.features import EfficientNetLite0
from ldm.metrics.weights import load_strictly, locate, read_state
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


class Lpips(nn.Module):
    """Learned perceptual distance v0.1 of pairs of pictures in [-1, 1] (Zhang et al. 2018, eq. 1).

    The weights of the layers lie in torchmetrics' wheel; AlexNet's own come from a file.

    Args:
        weights: path of AlexNet's state as torchvision publishes it; by default where `fetch` puts it.
        sha256: what that file must have; by default the published file's.

    Raises:
        UserError: no weights, other weights, weights of another network.
    """

    name: ClassVar[str] = "lpips"

    def __init__(self, *, weights: str | None = None, sha256: str | None = None) -> None:
        from torchmetrics.functional.image.lpips import (
            _LPIPS,  # with torchvision, a second that only LPIPS takes
        )
        from torchvision.models import alexnet

        super().__init__()
        path = locate("alexnet", weights, sha256=sha256)
        backbone = alexnet(weights=None)
        load_strictly(backbone, read_state(path), source=path)
        self.net = _LPIPS(net="alex", pnet_rand=True)
        for part in self.net.net.children():
            for number, layer in part.named_children():
                layer.load_state_dict(backbone.features[int(number)].state_dict())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lpips":
        return super().train(False)

    def forward(
        self, ours: Float[Tensor, "b 3 h w"], theirs: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each pair; pictures of at least 32 px."""
        return self.net(ours, theirs).flatten()
