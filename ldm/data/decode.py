"""The one reader of pictures: encoded bytes to upright sRGB of 8 bits, or an error with its reason.

Preparation, shards, streamed tars, folders that are measured, and `image=` and `mask=` of `ldm.sample` all
read by it.

| picture                               | rule                                                            |
| ------------------------------------- | --------------------------------------------------------------- |
| JPEG, PNG, WebP by content            | read, whatever the name's extension says                        |
| anything else: GIF, TIFF, HEIC, html  | refused: "not JPEG, PNG or WebP"; nothing else is decoded       |
| zero bytes                            | refused: "zero bytes"                                           |
| cut, or bytes that don't decode       | refused: "damaged"; no half-grey picture is read                |
| more than 2**26 pixels, or bytes      | refused unread: "too many pixels", "too many bytes"             |
| EXIF orientation 2 to 8               | turned upright, wherever the EXIF stands; ignored if unreadable |
| ICC profile other than sRGB           | to sRGB; one that can't be read or used is ignored              |
| CMYK, YCCK                            | by its profile; else R = (255 - C)(255 - K) / 255               |
| 16 bits                               | grey: v / 257, rounded; colours: the higher byte                |
| transparency, also of palette or grey | laid on white, after the profile                                |
| 1 bit, grey, palette                  | to RGB                                                          |
| animated                              | its first frame                                                 |
| PNG's gAMA, cHRM, texts; XMP          | ignored, with all other metadata                                |
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms
from simplejpeg import decode_jpeg

from ldm import UserError

RULES = 2  # counts changes of the table: what is kept of pictures that were read by another is not used
FORMATS = ("PNG", "JPEG", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
MAX_PIXELS = 2**26  # 192 MiB decoded
MAX_BYTES = 2**26  # of a file
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # by its value, EXIF 2.3, section 4.6.4 A
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: pixels.swapaxes(0, 1)[:, ::-1],
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: pixels.swapaxes(0, 1)[::-1],
}
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of ICC profiles, as PIL's modes
SAME = 2  # levels of 255: a profile that moves no colour further is sRGB, whatever its name
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of the first frame, where there are several
FRAME = 12  # bytes of a chunk beside its data: size, kind and checksum (PNG, third edition, section 5.3)
DEPTH = 24  # place of the bits of a sample
MAX_PROFILE = 2**22  # bytes; printers' largest have two million
UNREADABLE = b"?"


class PictureError(UserError):
    """A picture that can't be read.

    Attributes:
        reason: one of the few that the table names.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class EncodedPicture:
    """A PNG, JPEG or WebP whose header has been read.

    All JPEGs go to a decoder that is faster than PIL's, gives the same pixels and refuses damage that PIL
    accepts.

    Attributes:
        format, mode: as PIL names them.
        height, width: held upright, in pixels.
        metadata: names of what the file says beside its pixels, as PIL has them.
        reducible: whether `pixels` can be had at a half, a quarter or an eighth of the size for less work.
        changes: what `pixels` does beside decoding, in words.

    Raises:
        PictureError: no such picture, or one of more than `MAX_PIXELS`.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise PictureError("zero bytes")
        if len(data) > MAX_BYTES:
            raise PictureError("too many bytes", f"more than {MAX_BYTES:,}")
        parts = take_apart(data) if data.startswith(SIGNATURE) else Parts(data)
        self.data = parts.bare
        with _refusals(data):
            self._picture = picture = Image.open(io.BytesIO(self.data), formats=FORMATS)
            frames, is_clear = getattr(picture, "n_frames", 1), picture.has_transparency_data
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise PictureError("too many pixels", f"{width} x {height}, more than {MAX_PIXELS:,}")
        self.format, self.mode = picture.format, picture.mode
        self.metadata = {*picture.info}
        self.changes = ["first frame of several"] if frames > 1 or parts.is_animated else []
        self._orientation = self._read_orientation(parts.exif or picture.info.get("exif", b""))
        self._transform = self._read_profile(parts.profile or picture.info.get("icc_profile") or b"")
        self._read_colours(is_clear)
        self._is_jpeg = self.format in ("JPEG", "MPO")
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)
        self.reducible = self._is_jpeg and self._orientation == 1

    def pixels(self, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """uint8, h w 3.

        Args:
            at_least: height and width below which a JPEG need not be decoded in full; it may come at any
                eighths of its size that are not below them, rounded up.

        Raises:
            PictureError: a damaged or cut picture.
        """
        lying = self._decoded_jpeg(at_least) if self._is_jpeg else self._decoded()
        return UPRIGHT[self._orientation](lying)

    def _decoded_jpeg(self, at_least: tuple[int, int] | None) -> np.ndarray:
        height, width = at_least or (self.height, self.width)
        if self._orientation >= 5:
            height, width = width, height
        colours = "CMYK" if self.mode == "CMYK" else "RGB"
        with _refusals(self.data):
            pixels = decode_jpeg(self.data, colorspace=colours, min_height=height, min_width=width)
        if colours == "RGB" and self._transform is None:
            return pixels
        image = Image.fromarray(pixels) if colours == "RGB" else Image.fromarray(255 - pixels, mode="CMYK")
        return np.array(self._in_srgb(image))

    def _decoded(self) -> np.ndarray:
        with _refusals(self.data):
            self._picture.load()
            colours, alpha = _layers(self._picture)
        colours = self._in_srgb(colours)
        if alpha is not None:
            colours.putalpha(alpha)
            white = Image.new("RGBA", colours.size, "white")
            colours = Image.alpha_composite(white, colours).convert("RGB")
        return np.array(colours)

    def _in_srgb(self, colours: Image.Image) -> Image.Image:
        if self._transform is None:
            return colours if colours.mode == "RGB" else colours.convert("RGB")
        return ImageCms.applyTransform(colours.convert(self._transform.input_mode), self._transform)

    def _read_orientation(self, block: bytes) -> int:
        if not block:
            return 1
        exif = Image.Exif()
        try:
            with _refusals(self.data):
                exif.load(block)
                value = exif.get(ORIENTATION)
        except PictureError:  # a damaged block says nothing of the picture
            self.changes.append("unreadable EXIF")
            return 1
        if value == 1 or value not in UPRIGHT:
            return 1
        self.changes.append("turned upright")
        return value

    def _read_profile(self, profile: bytes) -> ImageCms.ImageCmsTransform | None:
        if not profile:
            return None
        own = "CMYK" if self.mode == "CMYK" else "L" if self.mode[0] in "1LI" else "RGB"
        try:
            transform = _to_srgb(profile, own)
        except (OSError, ValueError, TypeError, KeyError, ImageCms.PyCMSError):
            self.changes.append("unreadable profile")
            return None
        if transform is not None:
            self.changes.append(f"{self.mode} to sRGB by its profile")
        return transform

    def _read_colours(self, is_clear: bool) -> None:
        info, deep = self._picture.info, self.format == "PNG" and self.data[DEPTH] == 16
        if deep:
            self.changes.append("16 bits to 8")
            if isinstance(clear := info.get("transparency"), tuple):
                info["transparency"] = tuple(value >> 8 for value in clear)  # as PIL's pixels
        if is_clear:
            self.changes.append("laid on white")
        elif self.mode != "RGB" and self._transform is None and not deep:
            self.changes.append(f"{self.mode} to RGB")


@contextmanager
def _refusals(data: bytes) -> Iterator[None]:
    """Whatever a decoder says of bytes that are no picture, in our words; it may raise anything on them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixel numbers and damaged EXIF: both have their own rule
            yield
    except Image.DecompressionBombError as error:
        raise PictureError("too many pixels", f"more than {MAX_PIXELS:,}") from error
    except MemoryError:
        raise
    except Exception as error:
        reason = "damaged" if data.startswith(MAGIC) else "not JPEG, PNG or WebP"
        raise PictureError(reason, "" if reason != "damaged" else " ".join(str(error).split())) from error


def _layers(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits, and how opaque they are, or None where all are."""
    clear = picture.info.get("transparency")
    if picture.mode.startswith("I"):  # grey of 16 bits
        values = np.asarray(picture)
        grey = Image.fromarray((values.astype(np.float64) / 257).round().astype(np.uint8))
        return grey, None if clear is None else Image.fromarray((values != clear) * np.uint8(255))
    if picture.has_transparency_data:
        layers = picture.convert("RGBA")
        return layers.convert("RGB"), layers.getchannel("A")
    return picture, None


@lru_cache(maxsize=32)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From pixels of a mode with a profile to sRGB; None where the profile is that of sRGB.

    Raises:
        OSError, ValueError, KeyError, PyCMSError: no profile, or none for the mode; grey may have one of RGB.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = SPACES[source.profile.xcolor_space]
    if space != mode and (mode, space) != ("L", "RGB"):
        raise UserError(f"a profile for {space} in a picture of {mode}")
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), space, "RGB")
    if space == "CMYK":
        return transform
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    colours = levels[None] if space == "L" else cube.reshape(1, -1, 3)
    moved = np.asarray(ImageCms.applyTransform(Image.fromarray(colours), transform)).astype(int)
    same = np.abs(moved - colours.reshape(1, moved.shape[1], -1)).max() <= SAME
    return None if same else transform


class Parts(NamedTuple):
    """A PNG of its pixels alone, and what was around them; empty where there was none.

    Attributes:
        profile: ICC; `UNREADABLE` where it can't be unpacked.
        exif: wherever in the file it stood.
    """

    bare: bytes
    profile: bytes = b""
    exif: bytes = b""
    is_animated: bool = False


def take_apart(data: bytes) -> Parts:
    """The parts of a PNG, cut or whole."""
    kept, start, found = [SIGNATURE], len(SIGNATURE), {}
    while start + FRAME <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + FRAME + size
        if kind in PIXELS:
            kept.append(data[start:end])
        else:
            found.setdefault(kind, data[start + 8 : end - 4])
        start = end
    bare = b"".join(kept) if found else data
    return Parts(bare, _unpacked(found.get(b"iCCP", b"")), found.get(b"eXIf", b""), b"acTL" in found)


def _unpacked(chunk: bytes) -> bytes:
    if not chunk:
        return b""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE)
    except zlib.error:
        return UNREADABLE
    return profile if inflate.eof else UNREADABLE
