"""The rules for pictures. Everything that is stored is an upright RGB picture of 8 bits, without metadata.

| picture                                | rule                                                              |
| -------------------------------------- | ----------------------------------------------------------------- |
| JPEG, PNG, WebP by content             | read, whatever the name's extension says (counted)                |
| anything else: html, GIF, TIFF, ...    | left out: "not JPEG, PNG or WebP"; nothing else is ever decoded   |
| zero bytes                             | left out: "zero bytes"                                            |
| cut, or bytes that don't decode        | left out: "damaged"; no half-grey picture is kept                 |
| more than 50,000,000 pixels            | left out by its header, before decoding: "too many pixels"        |
| shorter side below `min_side`          | left out: "too small"                                             |
| longer / shorter side > `max_aspect`   | left out: "too elongated"                                         |
| EXIF orientation 2 to 8                | turned upright; EXIF that can't be read is ignored                |
| texts in a PNG, too long or damaged    | ignored, with all other metadata                                  |
| CMYK, YCCK                             | by the embedded profile; else R = (255 - C)(255 - K) / 255        |
| RGB with a profile other than sRGB     | to sRGB; a profile that can't be read is ignored                  |
| 16 bits                                | scaled to 8, not clipped                                          |
| palette, grey or RGB with transparency | laid on white                                                     |
| 1 bit, grey, palette                   | to RGB                                                            |
| animated                               | its first frame                                                   |
| shorter side above `resolution`        | resized to it (Lanczos, antialiased), aspect ratio kept           |
| smaller than `resolution`              | never enlarged; `resolution=0` keeps all sizes                    |

A baseline RGB JPEG without metadata that keeps its size is stored byte for byte. All else is written anew:
PNG as PNG, without loss, JPEG and WebP as JPEG of quality 95, 4:4:4.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from simplejpeg import decode_jpeg

from data_prep.png import without_metadata
from data_prep.tally import LeftOut
from ldm.data.decode import FORMATS, ORIENTATION, UPRIGHT, eight_bits, on_white

MAX_PIXELS = 50_000_000  # 150 MB of RGB
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
JPEG_END = b"\xff\xd9"
CLEAN = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "comment", "adobe", "adobe_transform"}
EXTENSIONS = {"JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",), "WEBP": (".webp",)}
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True, kw_only=True)
class PictureRules:
    """The numbers in the table above; `resolution` and `min_side` in pixels."""

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
    """Applies the rules to the bytes of one file.

    Raises:
        LeftOut: the picture can't be used.
    """
    if not data:
        raise LeftOut("zero bytes")
    try:
        return _prepared(data, name, rules)
    except LeftOut:
        bare = without_metadata(data)
        if bare == data:
            raise
    prepared = _prepared(bare, name, rules)
    return prepared._replace(changes=[*prepared.changes, "unreadable metadata"])


def _prepared(data: bytes, name: str, rules: PictureRules) -> Prepared:
    with opened(data) as picture:
        check_size(picture.size, rules)
        changes = [] if name.lower().endswith(EXTENSIONS[picture.format]) else ["named by another format"]
        if getattr(picture, "n_frames", 1) > 1:
            changes.append("first frame of several")
        smaller = target_size(picture.size, rules.resolution)
        pixels = decoded(picture, data, smaller)
        orientation = read_orientation(picture, changes)
        size = picture.size[::-1] if orientation >= 5 else picture.size
        if smaller == size and not changes and is_clean(picture, data):
            return Prepared(image=data, extension="jpg", size=size, changes=[])
        upright = to_rgb(pixels, changes)
        if smaller != picture.size:
            changes.append("resized")
            upright = upright.resize(smaller, Image.Resampling.LANCZOS)
        if orientation > 1:
            changes.append("turned upright")
            upright = Image.fromarray(np.ascontiguousarray(UPRIGHT[orientation](np.asarray(upright))))
        image, extension = encode(upright, lossless=picture.format == "PNG")
    return Prepared(image=image, extension=extension, size=size, changes=changes or ["written anew"])


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """The picture in some bytes; whatever a decoder says of damaged ones, in our words."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixel numbers and damaged EXIF: both have their own rule
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                yield picture
    except LeftOut:
        raise
    except Image.DecompressionBombError as error:
        raise LeftOut("too many pixels") from error
    except Exception as error:  # a decoder may raise anything on bytes that are no picture
        raise LeftOut("damaged" if data.startswith(MAGIC) else "not JPEG, PNG or WebP") from error


def check_size(size: tuple[int, int], rules: PictureRules) -> None:
    """Raises LeftOut for a picture that is too large, too small or too elongated."""
    shorter, longer = sorted(size)
    if shorter * longer > MAX_PIXELS:
        raise LeftOut("too many pixels")
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


def decoded(picture: Image.Image, data: bytes, size: tuple[int, int]) -> Image.Image:
    """The first frame; a JPEG that is to become much smaller comes at a half, a quarter or an eighth.

    PIL takes damaged JPEGs for whole ones; this decoder doesn't.
    """
    if picture.format not in ("JPEG", "MPO") or picture.mode not in ("RGB", "L"):
        picture.load()
        return picture
    width, height = size if size == picture.size else (2 * size[0], 2 * size[1])
    colours = "GRAY" if picture.mode == "L" else "RGB"
    pixels = decode_jpeg(data, colorspace=colours, min_width=width, min_height=height)
    image = Image.fromarray(pixels.squeeze(-1) if picture.mode == "L" else pixels)
    image.info = picture.info
    return image


def read_orientation(picture: Image.Image, changes: list[str]) -> int:
    """EXIF's orientation, 1 to 8; 1 where there is none, or none that can be read."""
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # as damaged bytes make it
        changes.append("unreadable EXIF")
        return 1
    return orientation if orientation in UPRIGHT else 1


def is_clean(picture: Image.Image, data: bytes) -> bool:
    """Whether a file is a baseline RGB JPEG with no metadata and nothing after its end."""
    return (
        picture.format == "JPEG"
        and picture.mode == "RGB"
        and picture.info.keys() <= CLEAN
        and data.endswith(JPEG_END)
    )


def to_rgb(picture: Image.Image, changes: list[str]) -> Image.Image:
    """RGB of 8 bits, with a note of what that took."""
    profile = picture.info.get("icc_profile")
    if picture.mode.startswith("I"):
        changes.append("16 bits to 8")
        picture = eight_bits(picture)
    elif picture.has_transparency_data:
        changes.append("laid on white")
        picture = on_white(picture)
    if profile and picture.mode in ("RGB", "CMYK"):
        picture = to_srgb(picture, profile, changes)
    if picture.mode != "RGB":
        changes.append(f"{picture.mode} to RGB")
        picture = picture.convert("RGB")
    return picture


def to_srgb(picture: Image.Image, profile: bytes, changes: list[str]) -> Image.Image:
    """An RGB or CMYK picture brought from its profile to sRGB; as it was if that can't be done."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if picture.mode == "RGB" and "sRGB" in ImageCms.getProfileDescription(source):
            return picture
        srgb = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, source, srgb, outputMode="RGB")
    except (OSError, ValueError, ImageCms.PyCMSError):
        changes.append("unreadable profile")
        return picture
    changes.append(f"{picture.mode} to sRGB by its profile")
    return converted


def encode(picture: Image.Image, *, lossless: bool) -> tuple[bytes, str]:
    """(bytes, extension) of a picture, without metadata."""
    picture.info = {}
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, format="PNG")
        return buffer.getvalue(), "png"
    picture.save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue(), "jpg"
