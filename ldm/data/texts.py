"""Files and tables of captions and prompts, in which nothing is formatted, escaped or interpreted."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ldm.data import DataError
from ldm.data.picture_files import SUFFIXES

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # usual ones, by suffix
LINE_END = re.compile(r"\r\n|\n|\r")
SURROGATE = re.compile("[\ud800-\udfff]")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")

csv.field_size_limit(2**24)  # its own limit, 2**17, would refuse long captions before our rule cuts them


class TableRow(NamedTuple):
    """The cells of a row, and the numbers of its first and last line."""

    first: int
    last: int
    cells: list[str]

    @property
    def lines(self) -> str:
        """The numbers in words."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"


class Table(NamedTuple):
    """A table: its delimiter and quoting in words, the names of its columns, and the rows below."""

    form: str
    header: TableRow
    rows: list[TableRow]


def read_text(path: Path) -> str:
    """The text of a file. Raises DataError: the file is UTF-16."""
    data = path.read_bytes()
    if data.startswith(UTF_16):
        raise DataError(f"{path} is UTF-16: save it as UTF-8 (in Excel: 'CSV UTF-8')")
    return decode(data)


def decode(data: bytes) -> str:
    """The text of UTF-8 bytes, without a byte order mark; other bytes become lone surrogates."""
    return data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of every line that is not blank."""
    return ((number, line) for number, line in enumerate(LINE_END.split(text), start=1) if line.strip())


def read_table(path: Path, text: str | None = None) -> Table:
    """The table in a file, whose `text` may have been read already; a row may be longer than the header.

    Raises DataError: UTF-16, or quotes that do not pair up.
    """
    text = read_text(path) if text is None else text
    _, head = next(numbered_lines(text), (1, ""))
    bare, usual = re.sub('"[^"]*"', "", head), DELIMITERS.get(path.suffix.lower(), ",")
    delimiter = max(",;\t", key=lambda each: (bare.count(each), each == usual))
    form = f"columns by {delimiter!r}"
    try:
        rows = _rows(path, text, delimiter, csv.QUOTE_MINIMAL)
        _check_swallowed(path, rows, delimiter)
    except DataError:
        if delimiter != "\t":
            raise
        rows, form = _rows(path, text, delimiter, csv.QUOTE_NONE), f"{form}, quotes as plain characters"
    header, *rows = rows or [TableRow(1, 1, [])]
    return Table(form, header._replace(cells=[name.strip() for name in header.cells]), rows)


def read_columns(path: Path, names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """The cells under the given names, row by row; other columns are passed over.

    Raises DataError: a column that is missing or there twice, no rows, or a row that can't be read.
    """
    table = read_table(path)
    header = table.header.cells
    if not table.rows or any(header.count(name) != 1 for name in names):
        raise DataError(
            f"{path} must have the columns {' and '.join(names)}, each once, and at least one row below;"
            f" it has the columns {', '.join(header) or 'none'}"
        )
    for row in table.rows:
        if len(row.cells) != len(header):
            raise DataError(f"{path}, {row.lines}: {len(row.cells)} cells under {len(header)} columns")
        if any(SURROGATE.search(cell) for cell in row.cells):
            raise DataError(f"{path}, {row.lines}: not UTF-8: save the file as UTF-8")
    places = [header.index(name) for name in names]
    return [tuple(row.cells[place] for place in places) for row in table.rows]


def _rows(path: Path, text: str, delimiter: str, quoting: int) -> list[TableRow]:
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True)
    rows, first = [], 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append(TableRow(first, reader.line_num, cells))
            first = reader.line_num + 1
    except csv.Error as error:
        lines = TableRow(first, reader.line_num, []).lines
        raise DataError(
            f"{path}, {lines}: a quote opens a field in line {first} and closes neither before {delimiter!r}"
            ' nor at the end of a line: write the field in quotes, and each quote inside it twice ("")'
        ) from error
    return rows


def _check_swallowed(path: Path, rows: Sequence[TableRow], delimiter: str) -> None:
    """Refuses a quoted field that holds another row: a stray quote opened it, and one lines later closed it.

    A caption may well have several lines, with delimiters in them. A line end in it is taken for the end of a
    row only if the cells before and after it look like the other cells of their columns.
    Raises DataError: the lines, and the row that was swallowed.
    """
    width = len(rows[0].cells) if rows else 0
    whole = [row for row in rows[1:] if len(row.cells) == width]
    broken = [(row, place) for row in whole for place in range(width) if LINE_END.search(row.cells[place])]
    kinds = [{_kind(row.cells[place]) for row in whole} for place in range(width if broken else 0)]
    for row, place in broken:
        for before, after in pairwise(LINE_END.split(row.cells[place])):
            ends, starts = before.split(delimiter)[::-1], after.split(delimiter)
            if len(ends) < width - place or len(starts) <= place:
                continue
            outer = [*zip(starts, kinds[:place], strict=False), *zip(ends, kinds[:place:-1], strict=False)]
            # a column with cells of mere words, as a second caption's, proves nothing
            alike = [_kind(cell) in known for cell, known in outer if "" not in known]
            if (alike and all(alike)) or (delimiter == "\t" and width > 1):
                raise DataError(
                    f"{path}, {row.lines}: the quoted field that opens in line {row.first} holds another row,"
                    f" {after[:60]!r}: close its quote, or write it twice; if the line is the field's own, "
                    "write it without a line end"
                )


def _kind(cell: str) -> str:
    """What a cell looks like: the name of a picture, or signs, digits and letters; nothing for mere words."""
    if cell.strip().lower().endswith(SUFFIXES):
        return "picture"
    shape = re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", cell.strip()))
    return shape if re.search(r"[^a\s]", shape) else ""
