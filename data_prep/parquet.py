"""Parquet files: rows of captions, and pictures in a column of bytes or of Hugging Face's images.

pyarrow, which reads them, is an extra: `pip install pyarrow`. A process holds one row group at a time.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.tally import LeftOut, Tally
from ldm.data import DataError

ROWS = 64  # that are decoded at a time
ENDINGS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp"}  # by the first two bytes


class Cell(NamedTuple):
    """A picture in a parquet file: the `offset`-th row of a column."""

    path: str
    size: int
    offset: int
    column: str

    def read(self) -> bytes:
        """The bytes. Raises LeftOut: not there (any more)."""
        try:
            return _bytes_of(_row(self.path, self.offset, self.column))
        except (DataError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise LeftOut("can't be read") from error


def parquet_entries(path: Path, tally: Tally) -> Iterator[tuple[str, dict]]:
    """(file:row, value by column) of the rows of a table; columns of pictures are passed over."""
    pictures = picture_columns(path)
    names = [name for name in column_names(path) if name not in pictures]
    yield from ((f"{path.name}:{number + 1}", entry) for number, entry in rows_of(path, names))


def rows_of(path: Path, columns: list[str]) -> Iterator[tuple[int, dict]]:
    """(number from 0, value by column) of each row. Raises DataError: a file that can't be read."""
    number = 0
    try:
        for batch in _opened(str(path)).iter_batches(batch_size=ROWS, columns=columns):
            for entry in batch.to_pylist():
                yield number, entry
                number += 1
    except (OSError, ValueError) as error:
        raise DataError(f"{path}, row {number + 1}: damaged, or no parquet file ({error})") from error


def column_names(path: Path) -> list[str]:
    """The names of the columns."""
    return list(_opened(str(path)).schema_arrow.names)


def picture_columns(path: Path) -> list[str]:
    """The columns that hold bytes, or structs with bytes, as Hugging Face stores images."""
    return [field.name for field in _opened(str(path)).schema_arrow if _holds_bytes(field.type)]


def picture_of(value: Any, path: str, row: int, column: str) -> tuple[str, Cell]:
    """(extension, place) of the picture in a cell. Raises LeftOut: none there."""
    data = _bytes_of(value)
    return ENDINGS.get(data[:2], "jpg"), Cell(path, len(data), row, column)


def _bytes_of(value: Any) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise LeftOut("row without a picture")
    return data


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(kind.field(n).name == "bytes" for n in range(kind.num_fields))
    return types.is_binary(kind) or types.is_large_binary(kind)


def _opened(path: str) -> Any:
    return _opened_by(path, os.getpid())  # a forked process opens its own


@lru_cache(maxsize=4)
def _opened_by(path: str, process: int) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise DataError(f"{path} needs pyarrow to be read: pip install pyarrow") from error
    try:
        return ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged, or no parquet file ({error})") from error


def _row(path: str, row: int, column: str) -> Any:
    metadata = _opened(path).metadata
    sizes = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    starts = list(accumulate(sizes, initial=0))
    group = bisect_right(starts, row) - 1
    return _group(path, group, column)[row - starts[group]].as_py()


@lru_cache(maxsize=1)
def _group(path: str, group: int, column: str) -> Any:
    return _opened(path).read_row_group(group, columns=[column], use_threads=False).column(0)
