"""Rows of captions from tables (csv, tsv, parquet) and lines of json, by the names of their columns."""

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from data_prep.pairing import Row
from data_prep.parquet import parquet_entries
from data_prep.tally import Tally
from ldm.construct import nearest
from ldm.data import DataError
from ldm.data.texts import DELIMITERS, numbered_lines, read_table, read_text

UNREADABLE = "row that can't be read"
NUMBER = re.compile(r"([0-9]{1,18})(\.0+)?")  # pandas writes whole numbers beside empty cells as 1.0
USUAL = {"image": ("image", "file_name"), "caption": ("caption", "text")}
HEAD = 100  # entries that are asked for their columns

Entries = Iterator[tuple[str, dict]]  # (file:line, value by column)


class Columns(NamedTuple):
    """What the columns of a caption file are called; empty: by their usual names, number and split none."""

    image: str = ""
    caption: str = ""
    number: str = ""
    split: str = ""

    def among(self, found: list[str], path: Path) -> "Columns":
        """Those of a file with columns `found`. Raises DataError: one is missing, or could be several."""
        return Columns(*(_column(option, name, found, path) for option, name in self._asdict().items()))


def caption_rows(path: Path, tally: Tally, *, columns: Columns, folder: str = "") -> Iterator[Row]:
    """Rows of a caption file; a list of captions gives one row each.

    Args:
        folder: of the pictures' paths, within the source.

    Raises DataError: no such columns, or a table that can't be read.
    """
    entries = READERS.get(path.suffix.lower(), table_entries)(path, tally)
    head = list(islice(entries, HEAD))
    if not head:
        return
    columns = columns.among(list(dict.fromkeys(name for _, entry in head for name in entry)), path)
    for place, entry in chain(head, entries):
        try:
            yield from rows_of_entry(entry, columns, folder, tally, place)
        except (KeyError, TypeError):
            tally.leave_caption(UNREADABLE, place)


def form_of(path: Path) -> str:
    """How a table is read, in brackets; empty for other caption files."""
    return f" ({read_table(path).form})" if path.suffix.lower() in DELIMITERS else ""


def table_entries(path: Path, tally: Tally) -> Entries:
    """The rows of a table; cells under equal names are together in a list."""
    table = read_table(path)
    names = table.header.cells
    for row in table.rows:
        place = f"{path.name}:{row.last}"
        if len(row.cells) != len(names):
            tally.leave_caption(UNREADABLE, place)
            continue
        entry: dict = {}
        for name, cell in zip(names, row.cells, strict=True):
            entry[name] = cell if names.count(name) == 1 else [*entry.get(name, []), cell]
        yield place, entry


def placed_lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line number", line) of every line that isn't blank."""
    return ((f"{path.name}:{number}", line) for number, line in numbered_lines(read_text(path)))


def json_entries(path: Path, tally: Tally) -> Entries:
    """The objects of a jsonl file."""
    for place, line in placed_lines(path):
        try:
            entry = json.loads(
                line
            )  # not parse_json: a caption of odd characters is left out by its own name
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            yield place, entry
        else:
            tally.leave_caption(UNREADABLE, place)


READERS: dict[str, Callable[[Path, Tally], Entries]] = {
    ".csv": table_entries,
    ".tsv": table_entries,
    ".jsonl": json_entries,
    ".parquet": parquet_entries,
}


def rows_of_entry(entry: dict, columns: Columns, folder: str, tally: Tally, place: str) -> Iterator[Row]:
    """A row for each caption of an entry, none if its number is none; KeyError or TypeError for no entry."""
    image, texts = entry[columns.image], entry[columns.caption]
    if not isinstance(image, str | int):
        raise TypeError(image)
    number = -1
    if columns.number:
        found = NUMBER.fullmatch(str(entry[columns.number]).strip())
        if not found:
            return tally.leave_caption("row without a number", place)
        if found[2]:
            tally.heal("number written with .0", place)
        number = int(found[1])
    split = str(entry[columns.split]).strip() if columns.split else ""
    for text in texts if isinstance(texts, list) else [texts]:
        yield Row(posixpath.join(folder, str(image).strip()), number, text, split)


def _column(option: str, name: str, found: list[str], path: Path) -> str:
    if not name and option not in USUAL:
        return ""
    wanted = (name,) if name else USUAL[option]
    present = [each for each in wanted if each in found]
    if not present and option == "image" and not name:
        present = [each for each in found if each.endswith("_file_name")]
    if len(present) == 1:
        return present[0]
    key = "split_column" if option == "split" else option
    if present:
        raise DataError(f"{path} has the columns {' and '.join(present)}: choose one with {key}=NAME")
    near = f"{nearest(wanted[0], found)}; it has {', '.join(found) or 'none'}"
    raise DataError(f"{path} has no column {wanted[0]!r}{near}: choose one with {key}=NAME")
