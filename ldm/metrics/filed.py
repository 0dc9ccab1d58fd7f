"""Tables that lie in files: memory lends room to the rows that are being read, and takes it back."""

import mmap
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.files import free_bytes, make_folder

ROWS_AT_ONCE = 1024  # of a table that is written or read: bounds its memory, whatever came as a batch
AROUND = 2**16  # bytes before and behind what is read that Linux brings into memory with it

_files: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address of their first byte


def filed(
    parts: Iterable[Mapping[str, Float[Tensor, "_ _"]]], *, folder: Path | None = None
) -> dict[str, Float[Tensor, "n _"]]:
    """Tables below each other by name, each in a file of its own: only one part is in memory at a time.

    They are read like any tensor and must not be written to. Their files have no names: nothing of them is
    left when the last reader has gone, also after a crash.

    Args:
        folder: where the files lie; null is the system's temporary folder, which also stands in for one that
            can't be written.

    Raises:
        UserError: the folder has no room.
    """
    tables = defaultdict(partial(_Growing, folder))
    for part in parts:
        for name, rows in part.items():
            tables[name].add(rows)
    return {name: table.whole() for name, table in tables.items()}


def mapped(file: BinaryIO, *, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> Tensor:
    """The numbers of a file as a tensor of which nothing is in memory until it is read.

    Args:
        offset: bytes before the first number, a multiple of the size of a number.
    """
    if 0 in shape:
        return torch.empty(*shape, dtype=dtype)
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    _files[whole.data_ptr()] = mapping
    return whole[offset:].view(dtype).view(*shape)


def give_back(table: Float[Tensor, "_ _"]) -> None:
    """Frees the memory of rows that lie in a file: they are read again when they are needed.

    That costs no disk as long as the system keeps the file in its own cache. A table that lies in no file
    stays as it is.
    """
    mapping = _files.get(table.untyped_storage().data_ptr())
    if mapping is None or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = table.storage_offset() * table.element_size()
    end = start + table.numel() * table.element_size() + AROUND
    page = max(0, start - AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_DONTNEED, page, end - page)


def read(table: Float[Tensor, "n d"], numbers: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
    """A copy of the rows with these numbers; the table itself takes no memory afterwards."""
    rows = table[numbers.to(table.device)]
    give_back(table)
    return rows


def append(file: BinaryIO, table: Float[Tensor, "n d"]) -> None:
    """Appends a table's rows to a file, a piece at a time."""
    for rows in table.split(ROWS_AT_ONCE):
        file.write(rows.contiguous().numpy())
        give_back(rows)
    file.flush()


class _Growing:
    """A table in a file without a name, to which rows are added."""

    def __init__(self, folder: Path | None) -> None:
        self.file, self.folder = _nameless(folder)
        self.rows, self.width, self.dtype = 0, 0, torch.float32

    def add(self, rows: Float[Tensor, "_ d"]) -> None:
        self.rows, self.width, self.dtype = self.rows + len(rows), rows.shape[1], rows.dtype
        try:
            append(self.file, rows)
        except OSError as error:
            size = self.rows * self.width * rows.element_size() / 1e9
            raise UserError(
                f"{self.folder} has no room for {size:.3g} GB of features ({error.strerror}; "
                f"{free_bytes(self.folder):,} bytes are free): name a folder that has more with "
                "cache=<folder>, or with TMPDIR in the environment"
            ) from error

    def whole(self) -> Float[Tensor, "n d"]:
        return mapped(self.file, shape=(self.rows, self.width), dtype=self.dtype)


def _nameless(folder: Path | None) -> tuple[BinaryIO, Path]:
    """A new file that is gone with its last reader, and the folder on whose disk it is."""
    if folder is not None:
        with suppress(OSError):
            return TemporaryFile(dir=make_folder(folder)), folder
    return TemporaryFile(), Path(gettempdir())
