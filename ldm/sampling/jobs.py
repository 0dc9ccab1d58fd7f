"""The pictures that a command asks for, by its prompts or a list of them; checked before torch is loaded.

A list is a text file with one prompt per line, or a csv or jsonl file with `COLUMNS` for more of a picture.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ldm import UserError
from ldm.data.picture_files import SUFFIXES, find_pictures
from ldm.data.texts import SURROGATE, numbered_lines, read_table, read_text
from ldm.io.reading import parse_json
from ldm.randomness.seeds import check_seed

MAX_JOBS = 100_000  # pictures per command
MAX_PROMPT = 10_000  # characters; a CLIP text encoder reads about 300
MAX_NAME = 100  # bytes: file systems take 255, and `.png` and temporary suffixes are added
MAX_LIST = 2**26  # bytes of a list
# strength where none is given: 0.6 keeps the composition of a picture; what is masked is to go as a whole
FROM_PICTURE, INTO_MASK = 0.6, 1.0
TAKEN = ("sheet", "pictures")  # names of files that lie beside the pictures
COLUMNS: dict[str, type] = {  # of a csv or jsonl list, and how a cell of a csv is read
    **dict.fromkeys(("prompt", "negative", "image", "mask", "name"), str),
    **dict.fromkeys(("seed", "count"), int),
    **dict.fromkeys(("strength", "scale"), float),
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """The settings of one picture; those that are None are the command's or the bundle's.

    Raises UserError for a field with a wrong value, by its name.
    """

    prompt: str
    seed: int
    name: str  # of its file, without `.png`
    negative: str = ""
    scale: float | None = None  # guidance scale
    image: Path | None = None  # the source picture
    mask: Path | None = None  # of the same size, light where `image` is generated anew
    strength: float | None = None  # how much of `image` is replaced, 0 to 1

    def __post_init__(self) -> None:
        for field in ("prompt", "negative", "name"):
            check_text(field, getattr(self, field))
        if not self.prompt.strip():
            raise UserError(f"prompt={self.prompt!r} is empty: write one or more words")
        check_name(self.name)
        check_seed(self.seed)
        check_number("scale", self.scale, "be a finite number", within=(-math.inf, math.inf))
        rule = "lie in [0, 1]: 0 keeps the picture, 1 ignores it"
        check_number("strength", self.strength, rule, within=(0, 1))
        if self.image is None and (self.mask or self.strength is not None):
            raise UserError("mask and strength need a source picture: name it with image=<file>")
        for field in ("image", "mask"):
            file = getattr(self, field)
            if file is not None and not os.path.isfile(file):  # Path.is_file raises where a name is too long
                raise UserError(f"{field}={file} is not there: name a PNG, JPEG or WebP file")

    @property
    def used_strength(self) -> float:
        """The strength that applies if `image` is given."""
        if self.strength is not None:
            return self.strength
        return FROM_PICTURE if self.mask is None else INTO_MASK


class Line(NamedTuple):
    """A line of a list."""

    where: str  # file and line number, as messages name them; empty for prompts of the command line
    fields: dict[str, Any]  # by column, without those that are empty


def asked_jobs(written: Mapping[str, Any], *, seed: int) -> list[Job]:
    """The pictures that a command asks for; `num_pictures` is spread evenly over the prompts.

    Raises UserError for the field that is wrong, with file and line if it stands in a list.
    """
    for name in ("num_pictures", "batch_size"):
        if isinstance(written[name], int) and written[name] < 1:
            raise UserError(f"{name}={written[name]} must be at least 1")
    lines = asked_lines(written["prompts"])
    count = written["per_prompt"]
    if count is None:
        count = max(1, round(written["num_pictures"] / len(lines)))
    given = {name: written[name] for name in ("negative", "image", "mask", "strength")}
    return jobs_of(lines, defaults={"count": count, "seed": seed} | given)


def asked_lines(prompts: object) -> list[Line]:
    """The prompts of a command, or the lines of the list that it names; raises UserError for an empty one."""
    if isinstance(prompts, str) and prompts.lower().endswith((".txt", ".csv", ".jsonl")):
        if not Path(prompts).is_file():
            raise UserError(
                f"there is no file prompts={prompts}; if it is a prompt, write prompts=['{prompts}']"
            )
        return read_list(Path(prompts))
    listed = prompts if isinstance(prompts, list) else [prompts]
    if not listed:
        raise UserError("prompts is empty: write prompts='[\"a red apple\"]', or a file of them")
    # Hydra wants an unpaired ${ escaped
    return [Line("", {"prompt": p.replace(r"\${", "${") if isinstance(p, str) else p}) for p in listed]


def read_list(path: Path) -> list[Line]:
    """The lines of a list, with paths of pictures relative to its folder; raises UserError with the line."""
    if (size := path.stat().st_size) > MAX_LIST:
        raise UserError(f"{path} has {size / 2**20:.0f} MiB: a list has at most {MAX_LIST // 2**20}")
    text = read_text(path)
    numbered = [(f"{path}, line {number}", line) for number, line in numbered_lines(text)]
    if wrong := next((where for where, line in numbered if SURROGATE.search(line)), None):
        raise UserError(f"{wrong}: it is no UTF-8 text: save it as UTF-8")
    match path.suffix.lower():
        case ".csv":
            lines = _csv_lines(path, text)
        case ".jsonl":
            lines = [_json_line(where, line) for where, line in numbered]
        case _:
            prompts = ((where, line.strip()) for where, line in numbered)
            lines = [Line(where, {"prompt": line}) for where, line in prompts if not line.startswith("#")]
    if not lines:
        raise UserError(f"{path} holds no prompt: write one per line")
    for _, fields in lines:
        fields |= {each: str(path.parent / str(fields[each])) for each in {"image", "mask"} & fields.keys()}
    return lines


def _csv_lines(path: Path, text: str) -> list[Line]:
    """The rows below a header with names of `COLUMNS`."""
    table = read_table(path, text)
    names = table.header.cells
    _check_columns(f"{path}, {table.header.lines}", names)
    lines = []
    for row in table.rows:
        where = f"{path}, {row.lines}"
        if len(row.cells) > len(names):
            raise UserError(f"{where}: {len(row.cells)} cells under {len(names)} columns: quote commas")
        cells = zip(names, row.cells, strict=False)  # a short row leaves its last columns empty
        lines.append(Line(where, {name: _of_cell(name, cell) for name, cell in cells if cell.strip()}))
    return lines


def _of_cell(name: str, cell: str) -> Any:
    try:
        return COLUMNS[name](cell)
    except ValueError:
        return cell  # the check of its field refuses it


def _json_line(where: str, line: str) -> Line:
    """The object on a line of a jsonl file, with keys of `COLUMNS`."""
    value = parse_json(line, name=where)
    if not isinstance(value, dict):
        raise UserError(f'{where}: it is no JSON object: write {{"prompt": "red apple"}}')
    fields = {name: each for name, each in value.items() if each is not None}
    _check_columns(where, fields)
    return Line(where, fields)


def _check_columns(where: str, names: Iterable[str]) -> None:
    """Refuses an unknown column, one that comes twice, and a list without prompts."""
    names = list(names)
    for name in names:
        if name not in COLUMNS:
            raise UserError(f"{where}: there is no column {name!r}; there are: {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise UserError(f"{where}: the column {name} comes twice: keep one of them")
    if "prompt" not in names:
        raise UserError(f"{where}: the column prompt is missing: the others only say more of a prompt")


def jobs_of(lines: Sequence[Line], *, defaults: Mapping[str, Any]) -> list[Job]:
    """The pictures of all lines, `count` for each prompt and source picture, in their order.

    The pictures of a line have its seed and the seeds after it, for each source picture anew. `defaults` has
    `count` and `seed`, and the values of other fields that a line leaves empty.

    Raises UserError for a field with a wrong value, too many pictures, or two of one name.
    """
    jobs: dict[str, Job] = {}
    for line in lines:
        try:
            made = _jobs_of_line(dict(defaults) | line.fields, first=len(jobs))
        except UserError as error:
            raise UserError(f"{line.where}: {error}" if line.where else str(error)) from error
        for job in made:
            if job.name in jobs:
                raise UserError(f"two pictures have name={job.name!r}: give each a name of its own, or none")
            jobs[job.name] = job
    return list(jobs.values())


def _jobs_of_line(fields: dict[str, Any], *, first: int) -> list[Job]:
    count, seed, name = fields.pop("count"), fields.pop("seed"), fields.pop("name", None)
    files = {each: fields.pop(each, None) for each in ("image", "mask")}
    image, mask = (None if file is None else Path(str(file)) for file in files.values())
    images = [None] if image is None else pictures_at(image)
    if type(count) is not int or count < 1 or first + count * len(images) > MAX_JOBS:
        raise UserError(
            f"count={str(count)[:40]} pictures per prompt must be a whole number, at least 1, and at most "
            f"{MAX_JOBS} pictures in all"
        )
    check_seed(seed)  # before numbers are added to it: true + 1 is 2
    jobs = []
    for place in range(count * len(images)):
        later = f"{name}_{place}" if place else name
        # numbers with zeros in front: files sorted by name are in the order of the list
        named = f"{first + place:04d}" if name is None else later
        source = {"image": images[place // count], "mask": mask}
        # the same seeds for each source picture, so that two of them can be compared at equal noise
        jobs.append(Job(**fields, **source, name=named, seed=seed + place % count))
    return jobs


def pictures_at(path: Path) -> list[Path]:
    """A file, or the pictures in a folder, not in those below it; raises UserError where it has none."""
    if not os.path.isdir(path):
        return [path]
    found = [path / name for name in find_pictures(path).pictures if "/" not in name]
    if not found:
        raise UserError(f"image={path} holds no picture: it must end in {', '.join(SUFFIXES)}")
    return found


def check_text(field: str, text: object) -> None:
    """Refuses what is no text, can't be encoded, or is too long; raises UserError with the field."""
    if not isinstance(text, str):
        raise UserError(f"{field}={repr(text)[:60]} is no text: write one or more words")
    if len(text) > MAX_PROMPT:
        raise UserError(f"a {field} of {len(text)} characters is too long: the limit is {MAX_PROMPT}")
    if found := SURROGATE.search(text):
        raise UserError(f"{field}={text[:40]!r} has an unpaired surrogate at position {found.start()}")


def check_name(name: str) -> None:
    """Refuses a name that is not one of a plain file in the output folder; raises UserError."""
    # also what other file systems forbid, to which the pictures may be copied
    plain = name.strip() == name and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not plain or not name or name.startswith(".") or name in TAKEN:
        raise UserError(f"name={name!r} can't be a file's: take letters, digits, - and _, without folders")
    if len(name.encode()) > MAX_NAME:
        raise UserError(f"a name of {len(name.encode())} bytes is too long: the limit is {MAX_NAME}")


def check_number(field: str, value: object, rule: str, *, within: tuple[float, float]) -> None:
    """Refuses what is neither None nor a finite number in a range; raises UserError with the rule."""
    fits = isinstance(value, int | float) and math.isfinite(value) and within[0] <= value <= within[1]
    if value is not None and (not fits or isinstance(value, bool)):
        raise UserError(f"{field}={repr(value)[:60]} must {rule}")
