"""Tables of features in files, read and compared a block at a time: memory holds blocks, never a whole table.

The files are mapped. The system reads a page when it is needed, and takes it back when memory is short.
"""

import mmap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import BinaryIO

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.io.writing import free_bytes, make_folder

ROWS_AT_ONCE = 1024  # of a table that is written or read: bounds its memory, whatever came as a batch


def store_tables(
    parts: Iterable[Mapping[str, Float[Tensor, "_ _"]]], *, folder: Path | None = None
) -> dict[str, Float[Tensor, "n _"]]:
    """Stacks the parts' tables by name, each in a file of its own: only one part is in memory at a time.

    The tables are read like any tensor and must not be written to. Their files have no names: nothing is left
    when the last reader has gone, also after a crash. They lie in the folder, or in the system's temporary
    one if it is None or can't be written. Raises UserError: the folder has no room.
    """
    tables = defaultdict(partial(_Growing, folder))
    for part in parts:
        for name, rows in part.items():
            tables[name].add(rows)
    return {name: table.whole() for name, table in tables.items()}


def mapped(file: BinaryIO, *, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """The numbers of a file as a tensor of which nothing is in memory until it is read."""
    if 0 in shape:
        return torch.empty(*shape, dtype=dtype)
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return torch.frombuffer(mapping, dtype=torch.uint8).view(dtype).view(*shape)


def append(file: BinaryIO, table: Float[Tensor, "n d"]) -> None:
    """Appends a table's rows to a file, a piece at a time."""
    for rows in table.split(ROWS_AT_ONCE):
        file.write(rows.contiguous().numpy())
    file.flush()


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are never copied whole: metrics that share the parts cost one copy of the features together.

    Attributes:
        parts: tables one below the other.
        order: in which their rows are read.
        unit: whether rows are scaled to length 1 as they are read.
    """

    parts: Sequence[Float[Tensor, "_ d"]]
    order: Int[Tensor, "n"]
    unit: bool = False

    def __len__(self) -> int:
        return len(self.order)

    def block(self, numbers: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """The rows with these numbers in the table's order, float64."""
        starts = torch.tensor([0, *accumulate(map(len, self.parts))])
        wanted = self.order[numbers].cpu()
        owners = torch.bucketize(wanted, starts, right=True) - 1
        first = self.parts[0]
        found = torch.empty(len(wanted), first.shape[1], dtype=torch.float64, device=first.device)
        for owner in owners.unique().tolist():
            mine = owners == owner
            found[mine] = self.parts[owner][wanted[mine] - starts[owner]].double()
        return F.normalize(found, dim=1) if self.unit else found


Rows = Float[Tensor, "_ _"] | Table


def as_table(rows: Rows | Sequence[Float[Tensor, "_ d"]]) -> Table:
    """A table of a tensor's rows, or of several tensors' one below the other."""
    if isinstance(rows, Table):
        return rows
    parts = [rows] if isinstance(rows, Tensor) else rows
    return Table(parts=parts, order=torch.arange(sum(map(len, parts))))


def unit_rows(rows: Rows) -> Table:
    """The table with every row scaled to length 1."""
    return replace(as_table(rows), unit=True)


def blocks(rows: Rows) -> Iterator[Float[Tensor, "b d"]]:
    """All rows in their order, `ROWS_AT_ONCE` of them at a time, float64."""
    table = as_table(rows)
    for numbers in torch.arange(len(table)).split(ROWS_AT_ONCE):
        yield table.block(numbers)


def distances_to(points: Float[Tensor, "b d"], others: Rows) -> Iterator[tuple[int, Float[Tensor, "b c"]]]:
    """Euclidean distances of points to each block of others, and the number of the block's first row."""
    start = 0
    for block in blocks(others):
        yield start, torch.cdist(points, block)
        start += len(block)


def nearest(points: Rows, others: Rows, *, count: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Euclidean distances to the nearest others, nearest first, and these others' numbers; float64."""
    found = []
    for rows in blocks(points):
        distances = rows.new_empty(len(rows), 0)
        numbers = distances.long()
        for start, gaps in distances_to(rows, others):
            new = torch.arange(start, start + gaps.shape[1], device=rows.device).expand_as(gaps)
            gaps, numbers = torch.cat([distances, gaps], dim=1), torch.cat([numbers, new], dim=1)
            distances, places = gaps.topk(min(count, gaps.shape[1]), dim=1, largest=False)
            numbers = numbers.gather(1, places)
        found.append((distances, numbers))
    distances, numbers = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(numbers)


class _Growing:
    """A table in a file without a name, to which rows are added."""

    def __init__(self, folder: Path | None) -> None:
        self.file, self.folder = _nameless(folder)
        self.rows, self.like = 0, torch.empty(0, 0)

    def add(self, rows: Float[Tensor, "_ d"]) -> None:
        """Appends rows; UserError where there is no room."""
        self.rows, self.like = self.rows + len(rows), rows.new_empty(0, rows.shape[1])
        try:
            append(self.file, rows)
        except OSError as error:
            size = self.rows * rows.shape[1] * rows.element_size() / 1e9
            raise UserError(
                f"{self.folder} has no room for {size:.3g} GB of features ({error.strerror}; "
                f"{free_bytes(self.folder):,} bytes are free): name a folder that has more with "
                "cache=<folder>, or with TMPDIR in the environment"
            ) from error

    def whole(self) -> Float[Tensor, "n d"]:
        """The whole table, mapped."""
        return mapped(self.file, shape=(self.rows, self.like.shape[1]), dtype=self.like.dtype)


def _nameless(folder: Path | None) -> tuple[BinaryIO, Path]:
    """A new file that is gone with its last reader, and the folder on whose disk it is."""
    if folder is not None:
        with suppress(OSError):
            return TemporaryFile(dir=make_folder(folder)), folder
    return TemporaryFile(), Path(gettempdir())
