"""Rows of captions from tables (csv, tsv) and lines of json, by the names of their columns."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.pairing import Row
from data_prep.tally import Tally
from data_prep.texts import read_text
from ldm.config import nearest
from ldm.data.index import DataError

csv.field_size_limit(2**24)


class Columns(NamedTuple):
    """What the columns of a caption file are called; number and split may be missing."""

    image: str
    caption: str
    number: str = ""
    split: str = ""


def table_rows(path: Path, tally: Tally, *, delimiter: str, columns: Columns) -> Iterator[Row]:
    """Rows of a table with a header; quotes are csv's.

    Raises:
        DataError: no such columns, or a table that csv can't read.
    """
    text = io.StringIO(read_text(path), newline="")
    table = csv.DictReader(text, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        table.fieldnames = [name.strip() for name in table.fieldnames or []]
        check_columns(path, list(table.fieldnames), columns)
        for cells in table:
            place = f"{path.name}:{table.line_num}"
            if None in cells or None in cells.values():
                tally.leave_caption("row that can't be read", place)
            else:
                yield from _rows(cells, cells[columns.caption], columns, tally, place)
    except csv.Error as error:
        raise DataError(f"{path}, line {table.line_num}: not a readable table ({error})") from error


def json_rows(path: Path, tally: Tally, *, columns: Columns) -> Iterator[Row]:
    """Rows of a jsonl file; a list of captions gives one row each."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path.name}:{number}"
        try:
            entry = json.loads(line)
            texts = entry[columns.caption]
            for text in texts if isinstance(texts, list) else [texts]:
                yield from _rows(entry, text, columns, tally, place)
        except (ValueError, KeyError, TypeError, RecursionError):
            tally.leave_caption("row that can't be read", place)


def _rows(entry: dict, text: object, columns: Columns, tally: Tally, place: str) -> Iterator[Row]:
    number = str(entry[columns.number]).strip() if columns.number else "-1"
    if columns.number and not number.isdecimal():
        tally.leave_caption("row without a number", place)
        return
    split = str(entry[columns.split]).strip() if columns.split else ""
    yield Row(str(entry[columns.image]).strip(), int(number), text, split)


def check_columns(path: Path, found: list[str], wanted: Columns) -> None:
    """Raises DataError for a column that a table doesn't have."""
    for name in filter(None, wanted):
        if name not in found:
            known = ", ".join(found) or "none"
            raise DataError(f"{path} has no column {name!r}{nearest(name, found)}; it has {known}")
