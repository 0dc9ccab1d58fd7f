"""The one reader of pictures, by the rules of docs/data_rules.md: encoded bytes to upright sRGB of 8 bits.

Preparation, training, evaluation and `ldm.sample` all read by it; a refusal names one of a few reasons.
"""

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageCms
from simplejpeg import decode_jpeg

from ldm import UserError

if TYPE_CHECKING:
    from torch import Tensor

RULES = 2  # counts changes of the rules, so that caches of another version of the rules are not used
FORMATS = ("PNG", "JPEG", "WEBP")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
MAX_PIXELS = 2**26  # 192 MiB decoded
MAX_BYTES = 2**26  # of a file
ORIENTATION = 0x0112  # EXIF tag
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of ICC profiles, as PIL's modes
SAME = 2  # levels of 255: a profile that moves no colour further is sRGB, whatever its name
SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of the first frame, where there are several
FRAME = 12  # bytes of a chunk beside its data: size, kind and checksum (PNG, third edition, section 5.3)
DEPTH = 24  # byte of a PNG that holds the bits of a sample
MAX_PROFILE = 2**22  # bytes; printers' largest have two million
UNREADABLE = b"?"
WORK = 2**30  # pixels times scans of a JPEG; cameras and browsers write about ten scans
MAX_CHUNKS = 2**16  # of a PNG; libpng writes one for each 8 KiB of its largest
OVERSAMPLING = 1.4  # a JPEG is decoded to at least so many times the pixels that are wanted


class PictureError(UserError):
    """A picture that can't be read; `reason` is one of the few in docs/data_rules.md."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class EncodedPicture:
    """A PNG, JPEG or WebP whose header has been read.

    Attributes:
        format, mode: as PIL names them.
        height, width: of the upright picture, in pixels.
        metadata: names of what the file says beside its pixels, as PIL has them.
        reducible: whether `pixels` can be had at a half, a quarter or an eighth of the size for less work.
        changes: what `pixels` does besides decoding, in words.

    Raises PictureError: no such picture, or one of more than `MAX_PIXELS`.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise PictureError("zero bytes")
        if len(data) > MAX_BYTES:
            raise PictureError("too many bytes", f"more than {MAX_BYTES:,}")
        self.data, around = _take_apart(data) if data.startswith(SIGNATURE) else (data, {})
        with _refusals(data):
            self._picture = picture = Image.open(io.BytesIO(self.data), formats=FORMATS)
            frames, is_clear = getattr(picture, "n_frames", 1), picture.has_transparency_data
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise PictureError("too many pixels", f"{width} x {height}, more than {MAX_PIXELS:,}")
        self.format, self.mode = picture.format, picture.mode
        # each scan of a progressive JPEG may change every pixel; these two bytes begin one, and are in none
        if picture.format in ("JPEG", "MPO") and data.count(b"\xff\xda") * width * height > WORK:
            raise PictureError("too many scans", "save it as a plain JPEG")
        self.metadata = {*picture.info}
        self.changes = ["first frame of several"] if frames > 1 or b"acTL" in around else []
        self._orientation = self._read_orientation(around.get(b"eXIf") or picture.info.get("exif"))
        packed = around.get(b"iCCP")
        self._transform = self._read_profile(_unpacked(packed) if packed else picture.info.get("icc_profile"))
        self._read_colours(is_clear)
        self._is_jpeg = self.format in ("JPEG", "MPO")
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)
        self.reducible = self._is_jpeg and self._orientation == 1

    def pixels(self, *, at_least: tuple[int, int] | None = None) -> np.ndarray:
        """uint8, h w 3; raises PictureError: a damaged or cut picture.

        A JPEG may come at any eighths of its size, rounded up, that are not below `at_least`: height, width.
        """
        pixels = self._decoded_jpeg(at_least) if self._is_jpeg else self._decoded()
        turn = self._orientation  # EXIF 2.3, section 4.6.4 A: from 5 on, rows and columns are exchanged
        pixels = pixels.swapaxes(0, 1) if turn >= 5 else pixels
        return pixels[:: -1 if turn in (3, 4, 7, 8) else 1, :: -1 if turn in (2, 3, 6, 7) else 1]

    def _decoded_jpeg(self, at_least: tuple[int, int] | None) -> np.ndarray:
        # simplejpeg, not PIL: faster, the same pixels, and it refuses damage that PIL shows as grey
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

    def _read_orientation(self, block: bytes | None) -> int:
        exif = Image.Exif()
        try:
            with _refusals(self.data):
                exif.load(block or b"")
                value = exif.get(ORIENTATION)
        except PictureError:  # a damaged block says nothing of the picture
            self.changes.append("unreadable EXIF")
            return 1
        if value not in range(2, 9):
            return 1
        self.changes.append("turned upright")
        return value

    def _read_profile(self, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
        own = "CMYK" if self.mode == "CMYK" else "L" if self.mode[0] in "1LI" else "RGB"
        try:
            transform = _to_srgb(profile, own) if profile else None
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


class Box(NamedTuple):
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def largest(height: int, width: int, *, aspect: float) -> tuple[int, int]:
    """Height and width of the largest box of an aspect (width over height) in a picture."""
    if width > height * aspect:
        return height, max(1, round(height * aspect))
    return max(1, round(width / aspect)), width


def centre(height: int, width: int, *, aspect: float, seed: int = 0, position: int = 0) -> Box:
    """The largest box of its aspect, in the middle: the `Crop` that is not random."""
    box_height, box_width = largest(height, width, aspect=aspect)
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def cut(picture: EncodedPicture, box: Box, *, height: int, width: int) -> "Tensor":
    """A box of a picture, resized (bicubic, antialiased): uint8, 3 h w.

    A JPEG much larger than wanted is decoded at a half, a quarter or an eighth, if the box starts on a pixel
    of those: its blocks of 8 x 8 frequencies are transformed back to fewer pixels.

    Raises PictureError: a damaged or cut picture.
    """
    import torch  # seconds that a preparation, which only checks pictures, does without

    room = min(box.height / height, box.width / width) / OVERSAMPLING
    fits = (k for k in (8, 4, 2) if k <= room and box.top % k == box.left % k == 0 and picture.reducible)
    reduction = next(fits, 1)
    top, left = box.top // reduction, box.left // reduction
    inner_height, inner_width = box.height / reduction, box.width / reduction  # may end inside a pixel
    pixels = picture.pixels(at_least=(-(-picture.height // reduction), -(-picture.width // reduction)))
    pixels = pixels[top : top + math.ceil(inner_height), left : left + math.ceil(inner_width)]
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if (box.height, box.width) != (height, width):
        scales = (height / inner_height, width / inner_width)
        image = torch.ops.aten._upsample_bicubic2d_aa(image[None], [height, width], False, *scales)[0]
    return image.contiguous()


def centre_square(picture: EncodedPicture, size: int) -> "Tensor":
    """The largest centred square of a picture, resized: uint8, 3 h w. Raises PictureError: a damaged one."""
    return cut(picture, centre(picture.height, picture.width, aspect=1.0), height=size, width=size)


@contextmanager
def _refusals(data: bytes) -> Iterator[None]:
    """Turns whatever a decoder raises on bytes that are no picture into a `PictureError`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixel numbers and damaged EXIF: both have their own rule
            yield
    except Image.DecompressionBombError as error:
        raise PictureError("too many pixels", f"more than {MAX_PIXELS:,}") from error
    except MemoryError:
        raise
    except Exception as error:
        if not data.startswith(MAGIC):
            raise PictureError("not JPEG, PNG or WebP") from error
        raise PictureError("damaged", " ".join(str(error).split())) from error


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

    Raises OSError, ValueError, KeyError, PyCMSError: no profile, or none for the mode; grey may have RGB's.
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


def _take_apart(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """A PNG, cut or whole, of its pixels alone; and what was around them: the first chunk of each kind."""
    # PIL reads a PNG's texts, EXIF and profile at places of its choice, and unpacks them without a limit
    kept, start, around, count = [SIGNATURE], len(SIGNATURE), {}, 0
    while start + FRAME <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + FRAME + size
        if kind in PIXELS:
            kept.append(data[start:end])
        else:
            around.setdefault(kind, data[start + 8 : end - 4])
        start, count = end, count + 1
        if count > MAX_CHUNKS:
            raise PictureError("too many chunks", f"more than {MAX_CHUNKS:,}: save it again")
    return (b"".join(kept) if around else data), around


def _unpacked(chunk: bytes) -> bytes:
    """The profile in an iCCP chunk: its name, a 0, the method of compression, and the packed bytes."""
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(chunk.partition(b"\0")[2][1:], MAX_PROFILE)
    except zlib.error:
        return UNREADABLE
    return profile if inflate.eof else UNREADABLE
