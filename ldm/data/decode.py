"""Encoded pictures to pixels: by content, upright, RGB, whole or not at all."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

FORMATS = ("PNG", "JPEG", "WEBP")  # decided by content; nothing else is ever decoded
MAX_PIXELS = 2**26  # 192 MiB decoded
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


class EncodedPicture:
    """A PNG, JPEG or WebP whose header has been read.

    Transparent pictures come on white, grey ones of 16 bits are scaled, of moving ones the first frame is
    taken. All JPEGs but the rare CMYK go to a decoder that is faster than PIL's, gives the same pixels and
    refuses damage that PIL passes over.

    Attributes:
        height, width: held upright, in pixels.
        reducible: whether `pixels` can be had at a half, a quarter or an eighth of the size for less work.

    Raises:
        ValueError: no such picture, or one of more than `MAX_PIXELS`.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        with _refusals():
            self._picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = self._picture.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"it has {width} x {height} pixels, more than {MAX_PIXELS:,}")
        self._orientation = _orientation(self._picture)
        self._usual_jpeg = self._picture.mode in ("RGB", "L") and data.startswith(b"\xff\xd8")
        self.height, self.width = (width, height) if self._orientation >= 5 else (height, width)
        self.reducible = self._usual_jpeg and self._orientation == 1

    def pixels(self, *, reduction: int = 1) -> np.ndarray:
        """uint8, h w 3, each side divided by 1, 2, 4 or 8 and rounded up.

        Raises:
            ValueError: a damaged or cut picture.
        """
        height, width = (-(-side // reduction) for side in (self.height, self.width))
        if self.reducible:
            return decode_jpeg(self.data, min_height=height, min_width=width)
        assert reduction == 1
        with _refusals():
            lying = decode_jpeg(self.data) if self._usual_jpeg else np.array(_rgb(self._picture))
        return UPRIGHT[self._orientation](lying)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _orientation(picture: Image.Image) -> int:
    exif = Image.Exif()
    try:
        exif.load(picture.info.get("exif", b""))  # `picture.getexif()` would decode a PNG
    except SyntaxError:  # a damaged block says nothing of the picture
        return 1
    value = exif.get(ORIENTATION)
    return value if value in UPRIGHT else 1


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        return eight_bits(picture).convert("RGB")
    return on_white(picture) if picture.has_transparency_data else picture.convert("RGB")


def eight_bits(picture: Image.Image) -> Image.Image:
    """A grey picture of 16 bits, scaled to 8."""
    values = np.asarray(picture).astype(np.float64).clip(0, 65535)
    return Image.fromarray((values / 257).round().astype(np.uint8))


def on_white(picture: Image.Image) -> Image.Image:
    """A transparent picture laid on white: RGB."""
    colours = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colours.size, "white"), colours).convert("RGB")
