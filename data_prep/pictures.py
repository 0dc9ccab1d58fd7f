"""How a picture is stored: upright sRGB of 8 bits, without metadata (docs/data_rules.md)."""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_prep.tally import LeftOut
from ldm.data.decode import EncodedPicture, PictureError

JPEG_END = b"\xff\xd9"
CLEAN = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "comment", "adobe", "adobe_transform"}
EXTENSIONS = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",)}


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """The numbers that the rules depend on; `resolution` and `min_side` in pixels."""

    resolution: int
    min_side: int
    max_aspect: float


class Prepared(NamedTuple):
    """A picture as it is stored, its upright size as it was found, and what was done to it."""

    image: bytes
    extension: str
    size: tuple[int, int]
    changes: list[str]


def prepare_picture(data: bytes, *, name: str, rules: PictureRules) -> Prepared:
    """Applies the rules to the bytes of one file. Raises LeftOut: the picture can't be used."""
    try:
        picture = EncodedPicture(data)
        check_size((picture.width, picture.height), rules)
        changes = [] if name.lower().endswith(EXTENSIONS[picture.format]) else ["named by another format"]
        changes += picture.changes
        size = picture.width, picture.height
        smaller = target_size(size, rules.resolution)
        is_kept = smaller == size and not changes and is_clean(picture, data)
        pixels = picture.pixels(at_least=None if smaller == size else (2 * smaller[1], 2 * smaller[0]))
    except PictureError as error:
        raise LeftOut(error.reason) from error
    if is_kept:
        return Prepared(image=data, extension="jpg", size=size, changes=[])
    upright = Image.fromarray(np.ascontiguousarray(pixels))
    if smaller != size:
        changes.append("resized")
        upright = upright.resize(smaller, Image.Resampling.LANCZOS)
    image, extension = encode(upright, lossless=picture.format == "PNG")
    return Prepared(image=image, extension=extension, size=size, changes=changes or ["written anew"])


def check_size(size: tuple[int, int], rules: PictureRules) -> None:
    """Raises LeftOut for a picture that is too small or too elongated."""
    shorter, longer = sorted(size)
    if shorter < rules.min_side:
        raise LeftOut("too small")
    if longer > rules.max_aspect * shorter:
        raise LeftOut("too elongated")


def target_size(size: tuple[int, int], resolution: int) -> tuple[int, int]:
    """The size that brings the shorter side to `resolution`, if that makes it smaller."""
    shorter = min(size)
    if not 0 < resolution < shorter:
        return size
    width, height = (round(side * resolution / shorter) for side in size)
    return width, height


def is_clean(picture: EncodedPicture, data: bytes) -> bool:
    """Whether a file is a baseline RGB JPEG with no metadata and nothing after its end."""
    return (
        picture.format == "JPEG"
        and picture.mode == "RGB"
        and picture.metadata <= CLEAN
        and data.endswith(JPEG_END)
    )


def encode(picture: Image.Image, *, lossless: bool) -> tuple[bytes, str]:
    """(bytes, extension) of a picture, without metadata."""
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, format="PNG")
        return buffer.getvalue(), "png"
    picture.save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), "jpg"
