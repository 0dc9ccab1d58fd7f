"""Contracts of feature extractors and perceptual distances, and the ways to resize pictures for them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError

BOTH_WAYS = "_both_ways"  # ends the name of features of pictures and of their mirror images
OWN_CLIP = "own_clip"  # in a result's name: the CLIP that conditions the model is the judge
RESIZE_MODES = ("bilinear", "bicubic", "bilinear_aliased", "tensorflow")
PictureDistance = Callable[[Tensor, Tensor], Tensor]  # b 3 h w in [-1, 1], twice -> b


@dataclass(frozen=True, kw_only=True)
class FeatureIdentity:
    """What makes features comparable: network, weights, and how pictures are brought to its input.

    Attributes:
        name: of the network; its features' names begin with it.
        sha256: of the weights.
        size: side of the network's input in pixels.
        resize: how pictures are resized.
        rounded: whether resized pictures are rounded to 8 bit before the network sees them.
    """

    name: str
    sha256: str
    size: int
    resize: str
    rounded: bool = False


@runtime_checkable
class FeatureExtractor(Protocol):
    """Pictures, uint8 b 3 h w, to one or more kinds of features, each float32 b d, in one pass."""

    @property
    def dims(self) -> Mapping[str, int]:
        """Width of each kind of features by its name."""
        ...

    @property
    def identity(self) -> FeatureIdentity:
        """What makes its features comparable with others."""
        ...

    def __call__(self, images: UInt8[Tensor, "b 3 h w"], /) -> dict[str, Float[Tensor, "b _"]]: ...


@runtime_checkable
class NamedDistance(Protocol):
    """A `PictureDistance` that names its numbers itself, so that no config can misname them."""

    name: str

    def __call__(self, ours: Tensor, theirs: Tensor, /) -> Tensor: ...


class Pixels:
    """The features `pixels`: a picture's values in [0, 255], channel by channel, as whole numbers.

    Pictures of another side than `size` are resized bicubically and rounded. Raises UserError: it is below 1.
    """

    def __init__(self, *, size: int) -> None:
        if size < 1:
            raise UserError(f"{size=} of the pictures to compare must be at least 1 pixel")
        self.dims: Mapping[str, int] = {"pixels": 3 * size**2}
        self.identity = FeatureIdentity(
            name="pixels", sha256="no weights", size=size, resize="bicubic", rounded=True
        )

    def to(self, device: torch.device) -> "Pixels":
        """Returns itself: it has no weights to move."""
        return self

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        resized = resize_pictures(images, size=self.identity.size, mode=self.identity.resize)
        return {"pixels": resized.round().flatten(1)}


class BothWays:
    """The features `<name>_both_ways`: an extractor's first features, and behind them the mirror image's."""

    def __init__(self, *, of: FeatureExtractor) -> None:
        name, width = next(iter(of.dims.items()))
        self.of, self.name = of, name
        self.dims: Mapping[str, int] = {f"{name}{BOTH_WAYS}": 2 * width}
        self.identity = replace(of.identity, name=f"{of.identity.name}{BOTH_WAYS}")

    def to(self, device: torch.device) -> "BothWays":
        """Moves the extractor; returns itself."""
        self.of.to(device)
        return self

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """One row a picture."""
        ways = [self.of(each)[self.name] for each in (images, images.flip(-1))]
        return {f"{self.name}{BOTH_WAYS}": torch.cat(ways, dim=1)}


def as_pictures(pixels: Float[Tensor, "b d"]) -> UInt8[Tensor, "b 3 s s"]:
    """Pictures out of the features `pixels`."""
    size = round((pixels.shape[1] / 3) ** 0.5)
    return pixels.to(torch.uint8).unflatten(1, (3, size, size))


def resize_pictures(images: UInt8[Tensor, "b 3 h w"], *, size: int, mode: str) -> Float[Tensor, "b 3 s s"]:
    """Resizes to a square; values stay in [0, 255] and are not rounded.

    The modes "bilinear" and "bicubic" are antialiased, the latter as Pillow's; "bilinear_aliased" picks
    between the four nearest pixels even where it shrinks; "tensorflow" does the same from TensorFlow 1's
    grid, which begins in the corner of the picture instead of half a pixel inside.

    Raises UserError: an unknown mode.
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
    """Raises a UserError that names the modes if this is none of them."""
    if mode not in RESIZE_MODES:
        raise UserError(f"resize={mode!r} is not one of {', '.join(RESIZE_MODES)}")


def _from_the_corner(pictures: Float[Tensor, "b 3 h w"], size: int) -> Float[Tensor, "b 3 s s"]:
    """Bilinear; pixel i of the result stands at i * side / size (TensorFlow 1's ResizeBilinear)."""
    for dim in (3, 2):  # torch-fidelity's order: other orders round differently
        side = pictures.shape[dim]
        places = torch.arange(size, dtype=torch.float32, device=pictures.device) * (side / size)
        first = places.long()
        lower = pictures.index_select(dim, first)
        upper = pictures.index_select(dim, (first + 1).clamp(max=side - 1))
        weight = places - first
        pictures = lower + (upper - lower) * (weight if dim == 3 else weight[:, None])
    return pictures
