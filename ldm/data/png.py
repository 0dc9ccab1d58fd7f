"""PNGs taken apart: what pixels follow from, and the metadata, which may be damaged, late or a bomb."""

import struct
import zlib
from typing import NamedTuple

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # of the first frame, where there are several
FRAME = 12  # bytes of a chunk beside its data: size, kind and checksum (PNG, third edition, section 5.3)
DEPTH = 24  # place of the bits of a sample
MAX_PROFILE = 2**22  # bytes; printers' largest have two million
UNREADABLE = b"?"


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
