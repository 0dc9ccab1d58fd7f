"""Facts about the decoding of pictures: what comes in, upright and whole, and what is refused."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from ldm.data.decode import EncodedPicture

MUTANTS = 300  # of each kind of picture
TURN = Image.Transpose
LAYING = {  # the turn that an orientation asks to be undone
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


def scene(height: int = 30, width: int = 46) -> Image.Image:
    """A smooth picture no two of whose corners are alike."""
    down, right = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    channels = (255 * down, 255 * right, 127 + 120 * np.sin(9 * down * right))
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pixels_are_those_of_pil(kind):
    data = encoded(scene(), kind)
    with Image.open(io.BytesIO(data)) as theirs:
        assert np.array_equal(EncodedPicture(data).pixels(), np.array(theirs.convert("RGB")))


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpegs_of_other_makes_are_those_of_pil(options):
    data = encoded(scene(), "JPEG", **options)
    with Image.open(io.BytesIO(data)) as theirs:
        assert np.array_equal(EncodedPicture(data).pixels(), np.array(theirs))


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "CMYK"])
def test_other_modes_become_rgb(mode):
    picture = scene().convert(mode)
    data = encoded(picture, "JPEG" if mode == "CMYK" else "PNG")
    difference = EncodedPicture(data).pixels().astype(int) - np.array(picture.convert("RGB"))
    assert np.abs(difference).max() <= (16 if mode == "CMYK" else 0)  # a JPEG's loss


def test_grey_values_of_16_bits_are_scaled():
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    pixels = EncodedPicture(encoded(Image.fromarray(values), "PNG")).pixels()
    assert np.array_equal(pixels, np.repeat((values / 257).round()[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_what_is_transparent_is_white(mode):
    picture = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    picture.paste((0, 0, 200, 255), (0, 0, 2, 4))
    pixels = EncodedPicture(encoded(picture.convert(mode), "PNG")).pixels()
    assert (pixels[:, 2:] == 255).all()
    assert (pixels[:, :2] == (0, 0, 200)).all()


def test_of_a_moving_picture_the_first_frame_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert (EncodedPicture(data).pixels() == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_come_upright(kind, orientation):
    lying = scene() if orientation == 1 else scene().transpose(LAYING[orientation])
    picture = EncodedPicture(encoded(lying, kind, exif=oriented(orientation)))
    assert (picture.height, picture.width) == (30, 46)
    difference = picture.pixels().astype(int) - np.array(scene())
    assert np.abs(difference).mean() < 5  # the loss of JPEG and WebP; a picture not upright is off by 80


def test_damaged_exif_harms_nothing():
    exif = oriented(6).tobytes()
    data = encoded(scene(), "JPEG", exif=exif[:6] + b"\xff" * (len(exif) - 6))
    assert EncodedPicture(data).pixels().shape == (30, 46, 3)


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_comes_smaller_for_less(reduction):
    picture = EncodedPicture(encoded(scene(100, 131), "JPEG", quality=95))
    assert picture.reducible
    pixels = picture.pixels(at_least=(-(-100 // reduction), -(-131 // reduction)))
    assert pixels.shape == (-(-100 // reduction), -(-131 // reduction), 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.95])
def test_cut_pictures_are_refused(kind, share):
    data = encoded(scene(120, 120), kind)
    with pytest.raises(ValueError):  # noqa: PT011
        EncodedPicture(data[: int(share * len(data))]).pixels()


def test_a_jpeg_whose_end_was_never_written_is_refused():
    data = encoded(scene(120, 120), "JPEG")
    with pytest.raises(ValueError, match="Premature end"):
        EncodedPicture(data[: len(data) // 2] + bytes(len(data) // 2)).pixels()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM"])
def test_other_formats_are_refused_whatever_their_name(kind):
    with pytest.raises(ValueError, match="not JPEG, PNG or WebP"):
        EncodedPicture(encoded(scene(), kind))


def test_a_bomb_is_refused_by_its_header():
    bomb = encoded(Image.new("1", (2**13, 2**13 + 1)), "PNG")
    with pytest.raises(ValueError, match=r"too many pixels: 8192 x 8193, more than 67,108,864"):
        EncodedPicture(bomb)


@pytest.mark.filterwarnings("ignore:.*:UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_mutants_are_pictures_or_refused(kind):
    data = encoded(scene(), kind, exif=oriented(6))
    draw = random.Random(0)
    outcomes = set()
    for _ in range(MUTANTS):
        mutant = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        try:
            outcomes.add(EncodedPicture(bytes(mutant)).pixels().ndim)
        except ValueError:
            outcomes.add("refused")
    assert outcomes <= {3, "refused"}
    assert "refused" in outcomes
