"""Prompts from a file: one a line of text, or a csv or jsonl whose columns say more of each picture.

What is wrong is told with its file and line, before anything is drawn.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ldm import UserError
from ldm.data import texts
from ldm.data.texts import SURROGATE, numbered_lines
from ldm.io.reading import parse_json

KINDS = (".txt", ".csv", ".jsonl")
BYTES_LIMIT = 2**26  # of a file
COLUMNS: dict[str, type] = {
    "prompt": str,
    "negative": str,
    "seed": int,
    "count": int,
    "image": str,
    "mask": str,
    "strength": float,
    "scale": float,
    "name": str,
}


class Line(NamedTuple):
    """What a line says.

    Attributes:
        where: file and number, as a sentence names them.
        fields: by column; what is empty is left out.
    """

    where: str
    fields: dict[str, Any]


def is_list(value: object) -> bool:
    """Whether a value of `prompts` means a file: it is text that ends like one.

    Raises:
        UserError: it ends so, and there is no such file.
    """
    if not isinstance(value, str) or not value.lower().endswith(KINDS):
        return False
    if not Path(value).is_file():
        raise UserError(f"there is no file prompts={value}; if it is a prompt, write prompts=['{value}']")
    return True


def read_list(path: Path) -> list[Line]:
    """The lines of a list; relative paths of pictures are taken from its folder.

    Raises:
        UserError: no prompts, or a line that can't be, by file and number.
    """
    lines = READERS[path.suffix.lower()](path, decoded(path))
    if not lines:
        raise UserError(f"{path} holds no prompt: write one a line")
    return [_from_folder(line, path.parent) for line in lines]


def decoded(path: Path) -> str:
    """The text of a file.

    Raises:
        UserError: it is too large, or not UTF-8.
    """
    size = path.stat().st_size
    if size > BYTES_LIMIT:
        raise UserError(f"{path} has {size / 2**20:.0f} MiB: a list has at most {BYTES_LIMIT // 2**20}")
    text = texts.read_text(path)
    if wrong := next((number for number, line in numbered_lines(text) if SURROGATE.search(line)), None):
        raise UserError(f"{path}, line {wrong}: it is no UTF-8 text: save it as UTF-8")
    return text


def read_text(path: Path, text: str) -> list[Line]:
    """One prompt a line; empty lines and those that begin with # are passed over."""
    return [
        Line(f"{path}, line {number}", {"prompt": line.strip()})
        for number, line in numbered_lines(text)
        if not line.strip().startswith("#")
    ]


def read_csv(path: Path, text: str) -> list[Line]:
    """A header with names of `COLUMNS`, then a prompt a row; an empty cell is as if it were not there."""
    table = texts.read_table(path, text)
    header = table.header.cells
    check_columns(f"{path}, {table.header.lines}", header)
    lines: list[Line] = []
    for row in table.rows:
        where = f"{path}, {row.lines}"
        if len(row.cells) > len(header):
            raise UserError(
                f"{where}: {len(row.cells)} cells under {len(header)} columns: put text with commas in quotes"
            )
        cells = {name: cell for name, cell in zip(header, row.cells, strict=False) if cell.strip()}
        lines.append(Line(where, {name: _of_cell(where, name, cell) for name, cell in cells.items()}))
    return lines


def read_jsonl(path: Path, text: str) -> list[Line]:
    """An object a line, with keys of `COLUMNS`; null is as if the key were not there."""
    lines: list[Line] = []
    for number, line in numbered_lines(text):
        where = f"{path}, line {number}"
        fields = _object(where, line)
        check_columns(where, fields)
        lines.append(Line(where, {name: _of_json(where, name, value) for name, value in fields.items()}))
    return lines


READERS: dict[str, Callable[[Path, str], list[Line]]] = dict(
    zip(KINDS, (read_text, read_csv, read_jsonl), strict=True)
)


def check_columns(where: str, names: Iterable[str]) -> None:
    """Refuses a column that there is not, one that comes twice, and a list without prompts.

    Raises:
        UserError: the column.
    """
    seen: set[str] = set()
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"{where}: there is no column {name!r}; there are: {', '.join(COLUMNS)}")
        if name in seen:
            raise UserError(f"{where}: the column {name} comes twice: keep one of them")
        seen.add(name)
    if "prompt" not in seen:
        raise UserError(f"{where}: the column prompt is missing: the others only say more of a prompt")


def _of_cell(where: str, name: str, cell: str) -> Any:
    try:
        return COLUMNS[name](cell)
    except ValueError as error:
        raise UserError(f"{where}: {name}={repr(cell)[:60]} is no {_told(name)}") from error


def _of_json(where: str, name: str, value: Any) -> Any:
    accepted = (int, float) if COLUMNS[name] is float else COLUMNS[name]
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise UserError(f"{where}: {name}={repr(value)[:60]} is no {_told(name)}")
    return value


def _told(name: str) -> str:
    return {str: "text", int: "whole number", float: "number"}[COLUMNS[name]]


def _object(where: str, line: str) -> dict[str, Any]:
    """The object of a line, without what is null."""
    value = parse_json(line, name=where)
    if not isinstance(value, dict):
        raise UserError(f'{where}: it is no JSON object: write {{"prompt": "red apple"}}')
    return {key: each for key, each in value.items() if each is not None}


def _from_folder(line: Line, folder: Path) -> Line:
    files = {name: str(folder / line.fields[name]) for name in ("image", "mask") if name in line.fields}
    return Line(line.where, line.fields | files)
