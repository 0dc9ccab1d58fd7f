"""Facts about the rules for pictures."""

import io
import resource
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks.faults.pictures import png_header, with_chunk
from benchmarks.faults.world import encoded, grey
from data_prep.pictures import PictureRules, prepare_picture
from data_prep.tally import LeftOut
from tests.data.test_decode import LAYING

KEEP = PictureRules(resolution=0, min_side=4, max_aspect=5)


def prepared(data: bytes, rules: PictureRules = KEEP, name: str = "x.png") -> np.ndarray:
    with Image.open(io.BytesIO(prepare_picture(data, name=name, rules=rules).image)) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture).astype(int)


@pytest.fixture
def smooth() -> Image.Image:
    """24 x 16, every corner another colour."""
    corners = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [230, 230, 40]]], dtype=np.uint8)
    return Image.fromarray(corners).resize((24, 16), Image.Resampling.BILINEAR)


def test_a_clean_jpeg_that_keeps_its_size_is_stored_byte_for_byte(smooth):
    data = encoded(smooth, "JPEG", quality=80)
    for resolution in (0, 16, 64):
        rules = PictureRules(resolution=resolution, min_side=4, max_aspect=5)
        assert prepare_picture(data, name="a.jpg", rules=rules).image == data


@pytest.mark.parametrize("extra", [{"progressive": True}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}])
def test_any_other_jpeg_is_written_anew_without_metadata(smooth, extra):
    data = encoded(smooth, "JPEG", quality=95, **extra)
    stored = prepare_picture(data, name="a.jpg", rules=KEEP)
    assert stored.changes == ["written anew"]
    with Image.open(io.BytesIO(stored.image)) as picture:
        assert picture.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # 4:4:4


def test_png_is_stored_without_loss(smooth):
    assert (prepared(encoded(smooth, "PNG")) == np.asarray(smooth)).all()


@pytest.mark.parametrize(
    ("size", "stored"),
    [((200, 100), (64, 32)), ((100, 200), (32, 64)), ((30, 40), (30, 40)), ((99, 66), (48, 32))],
)
def test_the_shorter_side_becomes_the_resolution_and_never_more(size, stored):
    rules = PictureRules(resolution=32, min_side=4, max_aspect=5)
    for kind in ("PNG", "JPEG"):
        picture = prepare_picture(encoded(Image.new("RGB", size), kind), name="x", rules=rules)
        with Image.open(io.BytesIO(picture.image)) as found:
            assert found.size == stored
        assert picture.size == size


def test_resizing_averages_what_it_leaves_out():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = prepared(
        encoded(Image.fromarray(stripes), "PNG"), PictureRules(resolution=8, min_side=4, max_aspect=5)
    )
    assert np.abs(small[:, 1:-1] - 127.5).max() < 3  # an aliased one would be 0 or 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_come_upright_and_equal(smooth, orientation):
    lying = smooth.transpose(LAYING[orientation]) if orientation > 1 else smooth
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(lying, "JPEG", quality=100, subsampling=0, exif=exif.tobytes())
    assert prepare_picture(data, name="x.jpg", rules=KEEP).size == smooth.size
    assert np.abs(prepared(data) - np.asarray(smooth)).max() <= 8  # twice coded; corners differ by 200


def test_sixteen_bits_are_scaled_and_not_clipped():
    ramp = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    found = prepared(encoded(Image.fromarray(ramp), "PNG"))
    assert (found[..., 0] == np.arange(256).reshape(16, 16)).all()


def test_what_is_transparent_is_laid_on_white():
    for mode in ("RGBA", "LA"):
        half = Image.new("RGBA", (8, 8), (0, 0, 0, 102)).convert(mode)
        assert np.abs(prepared(encoded(half, "PNG")) - 153).max() <= 1
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30, 200, 200, 200])
    palette.putpixel((7, 7), 1)
    found = prepared(encoded(palette, "PNG", transparency=0))
    assert (found[0, 0] == 255).all()
    assert (found[7, 7] == 200).all()


def test_cmyk_without_a_profile_follows_the_rule():
    colours = Image.new("CMYK", (16, 16), (51, 102, 0, 85))
    found = prepared(encoded(colours, "JPEG", quality=100), name="x.jpg")
    expected = [(255 - c) * (255 - 85) / 255 for c in (51, 102, 0)]
    assert np.abs(found - expected).max() <= 2


def test_a_picture_with_a_profile_of_its_own_comes_in_srgb(smooth):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    own = profile.replace("sRGB".encode("utf-16-be"), "oRGB".encode("utf-16-be"))
    own = own.replace(b"rXYZ", b"----", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"----", b"gXYZ", 1)
    data = encoded(smooth, "PNG", icc_profile=own)  # in which red means green
    stored = prepare_picture(data, name="x.png", rules=KEEP)
    assert stored.changes == ["RGB to sRGB by its profile"]
    assert np.abs(prepared(data) - np.asarray(smooth)[..., [1, 0, 2]]).max() <= 2
    assert (prepared(encoded(smooth, "PNG", icc_profile=profile)) == np.asarray(smooth)).all()
    with Image.open(io.BytesIO(stored.image)) as picture:
        assert "icc_profile" not in picture.info


def test_metadata_that_can_not_be_read_harm_no_picture():
    too_long = zlib.compress(bytes(6_000_000))
    chunks = {b"iCCP": b"x\0\0" + too_long, b"zTXt": b"x\0\0" + too_long, b"iTXt": b"x\0\1\0\0\0" + too_long}
    noted = {b"iCCP": ["unreadable profile"]}
    for kind, content in chunks.items():
        data = with_chunk(3, kind, content)
        stored = prepare_picture(data, name="x.png", rules=KEEP)
        assert stored.changes == noted.get(kind, ["written anew"])
        assert (prepared(data) == grey(3)).all()


def test_no_metadata_make_up_for_a_cut_picture():
    data = with_chunk(3, b"tEXt", b"Comment\0picture 3")
    with pytest.raises(LeftOut, match="damaged"):
        prepare_picture(data[:-30], name="x.png", rules=KEEP)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_a_moving_picture_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    stored = prepare_picture(data, name=f"x.{kind.lower()}", rules=KEEP)
    assert "first frame of several" in stored.changes
    assert np.abs(prepared(data) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("side", [9_000, 20_000, 100_000])
def test_a_bomb_is_left_out_by_its_header_and_takes_no_memory(side):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LeftOut, match="too many pixels"):
        prepare_picture(png_header(side, side), name="x.png", rules=KEEP)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kB


@pytest.mark.parametrize("keep", [0.02, 0.3, 0.7, 0.99])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_cut_picture_is_left_out(kind, keep):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), kind)
    with pytest.raises(LeftOut, match=r"damaged|not JPEG"):
        prepare_picture(data[: int(len(data) * keep)], name="x", rules=KEEP)
