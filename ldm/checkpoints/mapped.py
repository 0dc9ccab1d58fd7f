"""Weights that stay in their file: the system lends the memory that they are read into, and takes it back."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

SMAPS = Path("/proc/self/smaps")  # what Linux tells a process of its mappings
DONTNEED = 4  # of <sys/mman.h>
LEAST = 2**26  # bytes of a file that is worth the look at SMAPS


def give_back(path: Path, *, least: int = LEAST) -> None:
    """Gives back the memory of a file that this process maps; it is read again when it is needed.

    That costs no disk as long as the system keeps the file in its own cache. Mappings that were written to
    are left alone, for what was written would be lost; so are small files, those that were removed since, and
    all where there is no SMAPS.
    """
    if not path.is_file() or path.stat().st_size < least:
        return
    for start, end in unwritten(path):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


def unwritten(path: Path) -> Iterator[tuple[int, int]]:
    """First and last address of each mapping of a file of which no page was written to."""
    if not SMAPS.is_file():
        return
    addresses, resolved = None, str(path.resolve())
    for line in SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        name, *fields = line.split(maxsplit=5)
        if not name.endswith(":"):  # a mapping's first line: addresses, rights, offset, device, inode, path
            own = fields[4:] == [resolved]
            addresses = [int(each, 16) for each in name.split("-")] if own else None
        elif addresses and name == "Anonymous:" and fields[0] == "0":  # pages that are no longer the file's
            yield addresses[0], addresses[1]
