"""Numbers of the literature: what was measured and how, where it is printed, and what was not verified."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_type_hints

from ldm import UserError
from ldm.io.reading import read_yaml

PUBLISHED = Path(__file__).resolve().parents[1] / "assets" / "published.yaml"
METRICS = ("fid", "is_mean")
COCO = "MS-COCO 2014"
TYPES = {str: "a text that isn't empty", int: "a whole number", bool: "true or false", NoneType: "null"}


class Printed(NamedTuple):
    """A number as it was printed, and the number behind its ±."""

    value: float
    spread: float | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One system on one data set, as somebody printed it.

    None: the source doesn't say; where the field is in `unverified` too, nobody looked.
    """

    system: str  # its name; two printings of one measurement are two systems
    values: Mapping[str, Printed]  # number by metric, empty where the source prints none
    dataset: str
    split: str | None  # whose captions were used, and whose pictures are the reference
    images: int | None  # how many were generated
    zero_shot: bool | None  # trained without the data set
    reranking: str | None  # how many were generated for each one kept, and who chose
    guidance: str | None  # kind and scale
    resolution: int | None  # side of the measured pictures, in pixels
    resize: str | None  # how pictures came to the size of the feature network
    paper: str  # that describes the system
    printed_in: str  # where the numbers were read
    table: str | None  # in `printed_in`
    page: int | None
    unverified: tuple[str, ...] = ()  # fields and metrics that weren't checked against `printed_in`
    note: str = ""  # what else a reader must know

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "PublishedRow":
        """The row of a yaml entry; UserError for a field that is missing, unknown, or not what it must be."""
        known, kinds = {field.name: field.default for field in fields(cls)}, get_type_hints(cls)
        if strangers := sorted(set(map(str, entry)) - known.keys()):
            raise UserError(f"there is no field {strangers[0]!r}: a row has {', '.join(sorted(known))}")
        if missing := [name for name in known if name not in entry and known[name] is MISSING]:
            raise UserError(f"{missing[0]} is missing: write null where the source doesn't say")
        plain = {name: value for name, value in entry.items() if name not in ("values", "unverified")}
        for name, value in plain.items():
            kind = get_args(kinds[name]) or (kinds[name],)
            is_empty = value == "" and name != "note"
            if type(value) not in kind or is_empty:  # not isinstance: Python counts true as the int 1
                raise UserError(f"{name}={value!r} must be {' or '.join(TYPES[one] for one in kind)}")
            if type(value) is int and value < 1:
                raise UserError(f"{name}={value} must be at least 1, or null where the source doesn't say")
        unverified, values = entry.get("unverified", []), _printed(entry["values"])
        if not isinstance(unverified, list):
            raise UserError(f"unverified={unverified!r} must be a list of names")
        if strangers := sorted({*map(str, unverified)} - {*known, *METRICS}):
            raise UserError(f"unverified names {strangers[0]!r}, neither a field nor one of {METRICS}")
        if not values and not entry.get("note"):
            raise UserError("a row without values needs a note that says why it is here")
        return cls(values=values, unverified=tuple(map(str, unverified)), **plain)

    def verified(self, name: str) -> bool:
        """Whether a field, or the number of a metric, was checked against where it is printed."""
        return name not in self.unverified and not (name in METRICS and "values" in self.unverified)


def read_published(path: Path = PUBLISHED) -> list[PublishedRow]:
    """The rows of a yaml file, in its order; by default those that come with the code.

    Raises UserError: no such file, no list of rows, a row that is wrong, or two of one system and data set.
    """
    try:
        entries = read_yaml(path)
    except FileNotFoundError:
        raise UserError(f"there is no {path}: it holds the rows that others published") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} must be a list of rows, each with fields as system: and values:")
    rows = []
    for number, entry in enumerate(entries, start=1):
        try:
            rows.append(PublishedRow.of(entry))
        except UserError as error:
            raise UserError(f"{path}, row {number} ({entry.get('system')}): {error}") from error
    for (system, dataset), count in Counter((row.system, row.dataset) for row in rows).items():
        if count > 1:
            raise UserError(f"{path} has {count} rows of {system} on {dataset}: name the printing there")
    return rows


def reference_lines(rows: list[PublishedRow], metric: str, *, dataset: str = COCO) -> dict[str, float]:
    """Numbers of the literature by system, for a curve's name: `val/fid`, `val/is_mean`; none for others.

    All are of one data set, since lines of two don't belong in one picture; what wasn't verified is left out.
    """
    name = metric.rpartition("/")[2]
    return {
        row.system: row.values[name].value
        for row in rows
        if row.dataset == dataset and name in row.values and row.verified(name) and row.verified("dataset")
    }


def _printed(values: Any) -> dict[str, Printed]:
    if not isinstance(values, dict):
        raise UserError(f"values={values!r} must be a map as fid: 23.35, or {{}} where none is printed")
    if strangers := [name for name in values if name not in METRICS]:
        raise UserError(f"values names {strangers[0]!r}, which is not one of {METRICS}")
    found = {}
    for name, value in values.items():
        numbers = value if isinstance(value, list) else [value]
        valid = all(type(number) in (int, float) and 0 < number < math.inf for number in numbers)
        if not valid or len(numbers) not in (1, 2):
            raise UserError(f"{name}={value!r} must be a positive number, or a list of it and its ±")
        found[name] = Printed(*map(float, numbers))
    return found
