"""The ways in which pictures are brought to a network's size: measures differ by them as by their weights."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError

RESIZE_MODES = ("bilinear", "bicubic", "bilinear_aliased", "tensorflow")


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
