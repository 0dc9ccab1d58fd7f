"""The one rule for pictures: whoever reads a file, its pixels are the same, and those of the table."""

import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from benchmarks.faults.pictures import png_chunk, with_chunk, xyz_profile
from benchmarks.faults.tars import pack
from data_prep.pictures import PictureRules, encode, prepare_picture
from data_prep.tally import LeftOut
from ldm.data.decode import EncodedPicture, PictureError, centre
from ldm.data.streaming import StreamedPictures
from ldm.evaluation.pictures import PictureFolder
from ldm.sampling.batches import masked_pixels, prepared
from tests.data.test_decode import LAYING, encoded, oriented, scene

SIDE = 16
KEEP = PictureRules(resolution=0, min_side=1, max_aspect=9)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
P3 = {  # colorants of Display P3, adapted to D50
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


def s15(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def wide_gamut() -> bytes:
    """The profile of sRGB, name and all, with the colorants of Display P3."""
    profile = bytearray(SRGB)
    for number in range(struct.unpack_from(">I", SRGB, 128)[0]):
        tag, place, _ = struct.unpack_from(">4sII", SRGB, 132 + 12 * number)
        if tag in P3:
            profile[place + 8 : place + 20] = b"".join(map(s15, P3[tag]))
    return bytes(profile)


def linear_grey() -> bytes:
    """A profile of grey whose values are light itself."""
    curve = struct.pack(">4s4xI", b"curv", 0)
    white = b"XYZ \0\0\0\0" + b"".join(map(s15, (0.9642, 1.0, 0.8249)))
    tags = {b"wtpt": white, b"kTRC": curve}
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        table += struct.pack(">4sII", tag, place + len(body), len(content))
        body += content
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\2\x40\0\0", b"mntrGRAYXYZ ", b"acsp"
    head[68:80] = white[8:]
    head[:4] = struct.pack(">I", place + len(body))
    return bytes(head) + table + body


def flat(*colour: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (SIDE, SIDE), colour if len(colour) > 1 else colour[0])


def raw_png(kind: int, samples: list[int], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of one colour of 16 bits a sample."""
    row = b"\0" + struct.pack(f">{len(samples)}H", *samples) * SIDE
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 16, kind, 0, 0, 0))
    extra = b"".join(png_chunk(*each) for each in chunks)
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + extra
        + png_chunk(b"IDAT", zlib.compress(row * SIDE))
        + png_chunk(b"IEND", b"")
    )


def late_exif() -> bytes:
    data = encoded(scene(SIDE, SIDE).transpose(LAYING[6]), "PNG")
    return data[:-12] + png_chunk(b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]


def moving(kind: str) -> bytes:
    frames = [flat(0, 0, 255), flat(0, 255, 0)]
    return encoded(flat(255, 0, 0), kind, save_all=True, append_images=frames, lossless=True)


def palette_with_holes() -> bytes:
    picture = Image.new("P", (SIDE, SIDE), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    return encoded(picture, "PNG", transparency=bytes([255, 0]))


WIDE, GREY = wide_gamut(), linear_grey()
FLAT: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "wide gamut, named sRGB": (encoded(flat(200, 40, 40), "PNG", icc_profile=WIDE), (218, 0, 26)),
    "wide gamut, WebP": (encoded(flat(200, 40, 40), "WEBP", icc_profile=WIDE, lossless=True), (218, 0, 26)),
    "sRGB by its profile": (encoded(flat(200, 40, 40), "PNG", icc_profile=SRGB), (200, 40, 40)),
    "profile for no RGB": (encoded(flat(200, 40, 40), "PNG", icc_profile=xyz_profile()), (200, 40, 40)),
    "profile that is none": (with_chunk(3, b"iCCP", b"icc\0\0" + bytes(99)), (213, 213, 213)),
    "linear grey": (encoded(flat(55, mode="L"), "PNG", icc_profile=GREY), (128, 128, 128)),
    "grey under a profile of colours": (encoded(flat(90, mode="L"), "PNG", icc_profile=SRGB), (90, 90, 90)),
    "opaque, wide gamut": (
        encoded(flat(200, 40, 40, 255, mode="RGBA"), "PNG", icc_profile=WIDE),
        (218, 0, 26),
    ),
    "half transparent, wide gamut": (  # 255 + 128 / 255 (v - 255)
        encoded(flat(200, 40, 40, 128, mode="RGBA"), "PNG", icc_profile=WIDE),
        (236, 127, 140),
    ),
    "transparent": (encoded(flat(200, 40, 40, 0, mode="RGBA"), "PNG"), (255, 255, 255)),
    "half transparent grey": (encoded(flat(0, 128, mode="LA"), "PNG"), (127, 127, 127)),
    "palette with a transparent entry": (palette_with_holes(), (255, 255, 255)),
    "grey of 16 bits": (raw_png(0, [0x80C0]), (128, 128, 128)),
    "grey of 16 bits, that value transparent": (
        raw_png(0, [0x80C0], (b"tRNS", b"\x80\xc0")),
        (255, 255, 255),
    ),
    "grey of 16 bits, another transparent": (raw_png(0, [0x80C0], (b"tRNS", b"\x80\xc1")), (128, 128, 128)),
    "colours of 16 bits": (raw_png(2, [0xC840, 0x2880, 0x10FF]), (200, 40, 16)),
    "colours of 16 bits, transparent": (
        raw_png(2, [0xC840, 0x2880, 0x10FF], (b"tRNS", b"\xc8\x40\x28\x80\x10\xff")),
        (255, 255, 255),
    ),
    "grey and alpha of 16 bits": (raw_png(4, [0, 0x8000]), (127, 127, 127)),
    "RGBA of 16 bits": (raw_png(6, [0xC840, 0x2880, 0x10FF, 0xFFFF]), (200, 40, 16)),
    "1 bit": (encoded(flat(1, mode="1"), "PNG"), (255, 255, 255)),
    "CMYK": (encoded(flat(51, 102, 0, 85, mode="CMYK"), "JPEG", quality=100), (136, 102, 170)),
    "gamma of PNG": (
        raw_png(2, [0x8000] * 3, (b"gAMA", struct.pack(">I", 100_000))),
        (128, 128, 128),
    ),
    "moving PNG": (moving("PNG"), (255, 0, 0)),
    "moving WebP": (moving("WEBP"), (255, 0, 0)),
    "text that is a bomb": (
        with_chunk(3, b"zTXt", b"x\0\0" + zlib.compress(bytes(6_000_000))),
        (213, 213, 213),
    ),
}
TURNED = {"late EXIF": late_exif()} | {
    f"EXIF {value}": encoded(scene(SIDE, SIDE).transpose(turn), "PNG", exif=oriented(value))
    for value, turn in LAYING.items()
}
REFUSED = {
    "zero bytes": b"",
    "not JPEG, PNG or WebP": encoded(flat(9, 9, 9), "GIF"),
    "damaged": encoded(scene(SIDE, SIDE), "PNG")[:-40],
    "too many scans": encoded(scene(512, 512), "JPEG") + b"\xff\xda" * 4096,
    "too many chunks": with_chunk(1, b"teXt", b"") + png_chunk(b"teXt", b"") * 2**16,
    "too many pixels": b"\x89PNG\r\n\x1a\n"
    + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
    + png_chunk(b"IDAT", b""),
}


def by_evaluation(data: bytes, folder: Path) -> np.ndarray:
    (folder / "a.png").write_bytes(data)
    return PictureFolder(folder).image(0).permute(1, 2, 0).numpy()


def by_streaming(data: bytes, folder: Path) -> np.ndarray:
    (folder / "a.tar").write_bytes(pack([("a.png", data), ("a.txt", b"text")]))
    height = EncodedPicture(data).height
    view = {"shape": (height, height), "seed": 0, "crop": centre, "flips": False}
    streamed = StreamedPictures([str(folder / "a.tar")], view, shuffle=0, damaged_share=0.0)
    return streamed[0]["image"].permute(1, 2, 0).numpy()


def by_image(data: bytes, folder: Path) -> np.ndarray:
    (folder / "a.png").write_bytes(data)
    return prepared(folder / "a.png", size=EncodedPicture(data).height).permute(1, 2, 0).numpy()


READERS: list[Callable[[bytes, Path], np.ndarray]] = [by_evaluation, by_streaming, by_image]


def stored(data: bytes) -> np.ndarray:
    picture = prepare_picture(data, name="a.png", rules=KEEP)
    return EncodedPicture(picture.image).pixels()


@pytest.mark.parametrize("name", FLAT)
def test_every_reader_sees_the_colour_that_the_rule_says(name, tmp_path):
    data, colour = FLAT[name]
    pixels = EncodedPicture(data).pixels()
    assert np.abs(pixels.astype(int) - colour).max() <= (2 if data.startswith(b"\xff\xd8") else 1)
    for reader in READERS:
        assert np.array_equal(reader(data, tmp_path), pixels), reader.__name__
    kind = EncodedPicture(data).format
    again = encode(Image.fromarray(pixels), lossless=kind == "PNG")[0]
    assert np.array_equal(stored(data), EncodedPicture(again).pixels())
    lighter = pixels.astype(float).mean(axis=2) > 127.5
    assert np.array_equal(masked_pixels(tmp_path / "a.png", size=len(pixels))[0].numpy(), lighter)


@pytest.mark.parametrize("name", TURNED)
def test_every_reader_turns_a_picture_upright(name, tmp_path):
    for reader in (*READERS, lambda data, _: stored(data)):
        assert np.array_equal(reader(TURNED[name], tmp_path), np.array(scene(SIDE, SIDE)))


@pytest.mark.parametrize("reason", REFUSED)
def test_every_reader_refuses_the_same_files_for_the_same_reason(reason, tmp_path):
    data = REFUSED[reason]
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(LeftOut, match=reason):
        stored(data)
    for read in (
        lambda: EncodedPicture(data).pixels(),
        lambda: PictureFolder(tmp_path).image(0),
        lambda: prepared(tmp_path / "a.png", size=SIDE),
    ):
        with pytest.raises(ValueError, match=reason):
            read()


def test_a_sides_ratio_follows_an_exif_that_comes_late():
    data = encoded(scene(60, 80), "PNG")
    late = data[:-12] + png_chunk(b"eXIf", oriented(6).tobytes().removeprefix(b"Exif\0\0")) + data[-12:]
    picture = EncodedPicture(late)
    assert (picture.height, picture.width) == picture.pixels().shape[:2] == (80, 60)
    assert prepare_picture(late, name="a.png", rules=KEEP).size == (60, 80)


def test_a_jpeg_with_a_profile_is_converted_at_every_size():
    data = encoded(Image.new("RGB", (128, 128), (200, 40, 40)), "JPEG", quality=100, icc_profile=WIDE)
    for at_least in (None, (16, 16)):
        pixels = EncodedPicture(data).pixels(at_least=at_least)
        assert np.abs(pixels.astype(int) - (218, 0, 26)).max() <= 3
    assert pixels.shape == (16, 16, 3)


def test_a_damaged_cmyk_jpeg_is_refused_as_any_other():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(noise, mode="CMYK"), "JPEG")
    with pytest.raises(PictureError, match="damaged"):
        EncodedPicture(data[: len(data) // 2] + b"\xff\xd9").pixels()


def test_what_a_reader_says_can_go_to_another_process():
    assert str(pickle.loads(pickle.dumps(PictureError("damaged", "cut")))) == "damaged: cut"
