"""What can be wrong with a picture's file."""

import random
import struct
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from benchmarks.faults.world import (
    HEALED,
    LEFT_OUT,
    TOKENS,
    Answer,
    encoded,
    flat,
    grey,
    name_of,
    run_flickr,
    token_file,
)
from benchmarks.harness import Fault
from data_prep.pictures import PictureRules, prepare_picture
from data_prep.tally import LeftOut
from ldm.data.decode import EncodedPicture

VICTIM = 3
FUZZ_SECONDS = 2.0  # for one picture; more is a hang


def run_one(make: Callable[[int], bytes], number: int, root: Path, _trials: int) -> Answer:
    """A set in which one picture is what `make` gives."""
    files = {TOKENS: token_file(), name_of(number): make(number)}
    return run_flickr(root, files, culprit=name_of(number), samples_per_shard=5)


def noise(kind: str, size: int = 96) -> bytes:
    """A picture with something in it, for cutting and fuzzing."""
    pixels = np.random.default_rng(0).integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)
    return encoded(picture, kind)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    """A PNG that is a header and one small chunk: a bomb where the header lies or the rows compress well."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = png_chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + rows + png_chunk(b"IEND", b"")


def with_chunk(number: int, kind: bytes, data: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    whole = encoded(flat(number), "PNG")
    return whole[:33] + png_chunk(kind, data) + whole[33:]


def text_bomb(number: int) -> bytes:
    """A PNG with 100 MB of text that takes 100 kB."""
    return with_chunk(number, b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))


def with_exif(number: int, exif: bytes) -> bytes:
    return encoded(flat(number), "JPEG", quality=95, exif=exif)


def turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return with_exif(number, exif.tobytes())


def translucent(number: int, mode: str) -> bytes:
    """White that is `grey(number)` black over it: alpha decides the grey."""
    picture = Image.new("RGBA", (40, 40), (0, 0, 0, 255 - grey(number)))
    return encoded(picture.convert(mode), "PNG")


def palette(number: int) -> bytes:
    picture = flat(number).quantize(2)
    return encoded(picture, "PNG")


def sixteen_bits(number: int) -> bytes:
    return encoded(Image.fromarray(np.full((40, 40), grey(number) * 257, dtype=np.uint16)), "PNG")


def cmyk(number: int, **options: object) -> bytes:
    black = Image.new("L", (40, 40), 255 - grey(number))
    nothing = Image.new("L", (40, 40), 0)
    return encoded(Image.merge("CMYK", (nothing, nothing, nothing, black)), "JPEG", quality=95, **options)


def moving(number: int, kind: str) -> bytes:
    frames = [flat(number + 1), flat(number + 2)]
    return encoded(flat(number), kind, save_all=True, append_images=frames, lossless=True)


def ended(data: bytes) -> bytes:
    """Cut, but with JPEG's end mark put after the cut: most decoders fill the rest with grey."""
    return data[: len(data) * 2 // 3] + b"\xff\xd9"


def flipped(data: bytes, place: float = 0.5) -> bytes:
    index = int(len(data) * place)
    return data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :]


def xyz_profile() -> bytes:
    """A profile that is none of RGB."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()


def fuzz(kind: str, _folder: Path, trials: int) -> Answer:
    """Mutants of one file: each is left out, or becomes a picture that training can read; soon."""
    whole, rules = noise(kind), PictureRules(resolution=64, min_side=8, max_aspect=5)
    draw, kept = random.Random(0), 0
    for _ in range(mutants := 5 * trials):
        mutant = bytearray(whole)
        for _ in range(draw.choice((1, 2, 8, 64))):
            mutant[draw.randrange(len(mutant))] = draw.randrange(256)
        if draw.random() < 0.3:
            mutant = mutant[: draw.randrange(len(mutant))]
        started = time.perf_counter()
        try:
            EncodedPicture(prepare_picture(bytes(mutant), name="x", rules=rules).image).pixels()
            kept += 1
        except LeftOut:
            pass
        if time.perf_counter() - started > FUZZ_SECONDS:
            raise TimeoutError(f"a mutant of {kind} took {time.perf_counter() - started:.1f} s")
    return Answer(LEFT_OUT, tries=mutants, says=f"{mutants - kept} left out, {kept} decode whole")


def gif(number: int) -> bytes:
    return encoded(flat(number), "GIF")


ONE = {
    "zero bytes": (lambda n: b"", LEFT_OUT),
    "html page named .jpg": (lambda n: b"<!DOCTYPE html><title>404</title>", LEFT_OUT),
    "GIF": (gif, LEFT_OUT),
    "BMP": (lambda n: encoded(flat(n), "BMP"), LEFT_OUT),
    "TIFF": (lambda n: encoded(flat(n), "TIFF"), LEFT_OUT),
    "JPEG cut in half": (lambda n: noise("JPEG")[:900], LEFT_OUT),
    "JPEG cut, end mark put back": (lambda n: ended(noise("JPEG")), LEFT_OUT),
    "JPEG of its first 10 bytes": (lambda n: noise("JPEG")[:10], LEFT_OUT),
    "PNG cut in half": (lambda n: noise("PNG")[:5000], LEFT_OUT),
    "PNG with one byte changed": (lambda n: flipped(noise("PNG")), LEFT_OUT),
    "WebP cut in half": (lambda n: noise("WEBP")[:400], LEFT_OUT),
    "PNG whose header says 100,000 x 100,000": (lambda n: png_header(100_000, 100_000), LEFT_OUT),
    "PNG whose header says 8,000 x 8,000": (lambda n: png_header(8_000, 8_000), LEFT_OUT),
    "1 x 1": (lambda n: encoded(flat(n, size=(1, 1)), "PNG"), LEFT_OUT),
    "1 x 20,000": (lambda n: encoded(flat(n, size=(1, 20_000)), "PNG"), LEFT_OUT),
    "40 x 400": (lambda n: encoded(flat(n, size=(40, 400)), "PNG"), LEFT_OUT),
    "PNG named .jpg": (lambda n: encoded(flat(n), "PNG"), HEALED),
    "CMYK JPEG": (cmyk, HEALED),
    "CMYK JPEG with a broken profile": (lambda n: cmyk(n, icc_profile=b"x" * 200), HEALED),
    "JPEG with a broken profile": (
        lambda n: encoded(flat(n), "JPEG", quality=95, icc_profile=b"x" * 200),
        HEALED,
    ),
    "JPEG with a profile that isn't for RGB": (
        lambda n: encoded(flat(n), "JPEG", quality=95, icc_profile=xyz_profile()),
        HEALED,
    ),
    "JPEG turned by EXIF": (turned, HEALED),
    "JPEG with broken EXIF": (lambda n: with_exif(n, b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\1" * 40), HEALED),
    "progressive JPEG": (lambda n: encoded(flat(n), "JPEG", quality=95, progressive=True), HEALED),
    "JPEG with bytes after its end": (
        lambda n: encoded(flat(n), "JPEG", quality=95) + b"<script>",
        HEALED,
    ),
    "grey JPEG": (lambda n: encoded(flat(n, "L"), "JPEG", quality=95), HEALED),
    "PNG with 100 MB of text in 100 kB": (text_bomb, HEALED),
    "PNG with a profile that isn't compressed": (
        lambda n: with_chunk(n, b"iCCP", b"icc\0\0" + bytes(99)),
        HEALED,
    ),
    "16 bits": (sixteen_bits, HEALED),
    "palette": (palette, HEALED),
    "transparent (RGBA)": (lambda n: translucent(n, "RGBA"), HEALED),
    "transparent (LA)": (lambda n: translucent(n, "LA"), HEALED),
    "moving WebP": (lambda n: moving(n, "WEBP"), HEALED),
    "moving PNG": (lambda n: moving(n, "PNG"), HEALED),
}

FAULTS = [
    *(
        Fault(area="pictures", name=name, answer=answer, run=partial(run_one, make, VICTIM))
        for name, (make, answer) in ONE.items()
    ),
    Fault(
        area="pictures",
        name="1 bit",
        answer=HEALED,
        run=partial(run_one, lambda n: encoded(flat(n, "1"), "PNG"), 0),
    ),
    *(
        Fault(area="pictures", name=f"fuzzed {kind}", answer=LEFT_OUT, run=partial(fuzz, kind))
        for kind in ("JPEG", "PNG", "WEBP")
    ),
]
