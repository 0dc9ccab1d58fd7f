"""PNGs without what surrounds their pixels: that may be damaged, or a bomb, and the picture whole."""

import struct

SIGNATURE = b"\x89PNG\r\n\x1a\n"
METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
FRAME = 12  # bytes of a chunk beside its data: size, kind and checksum (PNG, third edition, section 5.3)


def without_metadata(data: bytes) -> bytes:
    """A PNG without its texts, profile and EXIF; anything else as it is."""
    if not data.startswith(SIGNATURE):
        return data
    kept, start = [SIGNATURE], len(SIGNATURE)
    while start + FRAME <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        end = start + FRAME + size
        if kind not in METADATA:
            kept.append(data[start:end])
        start = end
    return b"".join(kept)
