"""The pictures that a command, or a list and a command, asks for; checked before anything heavy loads."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.data.picture_files import SUFFIXES, find_pictures
from ldm.randomness.seeds import check_seed
from ldm.sampling.lists import Line, is_list, read_list

MOST = 100_000  # pictures a command
PROMPT_LIMIT = 10_000  # characters; a CLIP text encoder reads about 300
NAME_LIMIT = 100
FROM_PICTURE, INTO_MASK = 0.6, 1.0  # strength where none is said
TAKEN = ("sheet", "pictures")  # names of what lies beside the pictures


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that is said of one picture; whatever is null is the command's or the bundle's.

    Attributes:
        name: of its file, without `.png`.
        scale: of the guidance.
        image: the picture that drawing starts from.
        mask: of the same size, light where `image` is redrawn.
        strength: how much of `image` is drawn anew, 0 to 1.

    Raises:
        UserError: a field that can't be, by its name.
    """

    prompt: str
    seed: int
    name: str
    negative: str = ""
    scale: float | None = None
    image: Path | None = None
    mask: Path | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        if not self.prompt.strip():
            raise UserError(f"prompt {self.prompt!r} holds no text: write one or more words")
        check_text("negative", self.negative)
        check_name(self.name)
        check_seed(self.seed)
        if self.scale is not None and not (is_number(self.scale) and math.isfinite(self.scale)):
            raise UserError(f"scale={self.scale} must be a finite number")
        if self.image is None and (self.mask or self.strength is not None):
            raise UserError("mask and strength go with a picture to start from: name it with image=<file>")
        for field in ("image", "mask"):
            file = getattr(self, field)
            if file is not None and not os.path.isfile(file):  # also where its name is too long
                raise UserError(f"{field}={file} is not there: name a PNG, JPEG or WebP file")
        if self.strength is not None and not (is_number(self.strength) and 0 <= self.strength <= 1):
            raise UserError(f"strength={self.strength} must lie in [0, 1]: 0 keeps the picture, 1 redraws it")

    @property
    def drawn_strength(self) -> float:
        """The strength that is used."""
        if self.strength is not None:
            return self.strength
        return FROM_PICTURE if self.mask is None else INTO_MASK


def is_number(value: object) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_text(field: str, text: object) -> None:
    """Refuses what is no text that can be encoded and written, or too long.

    Raises:
        UserError: the field and what is wrong.
    """
    if not isinstance(text, str):
        raise UserError(f"{field} {text!r} holds no text: write one or more words")
    if len(text) > PROMPT_LIMIT:
        raise UserError(f"a {field} of {len(text)} characters is too long: the limit is {PROMPT_LIMIT}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{field} {text[:40]!r} holds half a character at {error.start}: write it whole"
        ) from error


def check_name(name: str) -> None:
    """Refuses a name that is not one of a plain file in the output folder.

    Raises:
        UserError: the name.
    """
    plain = name.strip() == name and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    if not plain or not name or name.startswith(".") or name in TAKEN:
        raise UserError(f"name={name!r} can't be a file's: take letters, digits, - and _, without folders")
    if len(name.encode()) > NAME_LIMIT:
        raise UserError(f"a name of {len(name.encode())} bytes is too long: the limit is {NAME_LIMIT}")


def asked_jobs(written: Mapping[str, Any], *, seed: int) -> list[Job]:
    """The pictures that a command asks for; `num_pictures` is spread evenly over the prompts.

    Raises:
        UserError: what can't be drawn, by its field, and its file and line if it stands in a list.
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
    """The prompts of a command, or the lines of the list that it names.

    Raises:
        UserError: no prompt, or a list that can't be read.
    """
    if is_list(prompts):
        return read_list(Path(str(prompts)))
    written = prompts if isinstance(prompts, list) else [prompts]
    if not written:
        raise UserError("prompts is empty: write prompts='[\"a red apple\"]', or a file of them")
    return [
        # Hydra wants an unpaired ${ escaped
        Line("", {"prompt": prompt.replace(r"\${", "${") if isinstance(prompt, str) else prompt})
        for prompt in written
    ]


def jobs_of(lines: Sequence[Line], *, defaults: Mapping[str, Any]) -> list[Job]:
    """The pictures of all lines, `count` for each prompt and picture to start from, in their order.

    The pictures of a line have its seed and those after it, anew for each picture to start from.

    Args:
        defaults: `count` and `seed`, and whatever other field of a line holds where it says nothing.

    Raises:
        UserError: a field that can't be, too many pictures, or two of one name.
    """
    jobs: list[Job] = []
    for line in lines:
        fields = dict(defaults) | line.fields
        try:
            jobs += _jobs_of_line(fields, first=len(jobs))
        except UserError as error:
            raise UserError(f"{line.where}: {error}" if line.where else str(error)) from error
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen:
            raise UserError(f"two pictures have name={job.name!r}: give each a name of its own, or none")
        seen.add(job.name)
    return jobs


def _jobs_of_line(fields: Mapping[str, Any], *, first: int) -> list[Job]:
    count, image = fields["count"], fields.get("image")
    images = [None] if image is None else pictures_at(Path(str(image)))
    if type(count) is not int or count < 1 or first + count * len(images) > MOST:
        raise UserError(
            f"{count=} pictures a prompt: it must be a whole number, at least 1, and {MOST} in all"
        )
    check_seed(fields["seed"])  # before numbers are added to it: true + 1 is 2
    mask = fields.get("mask")
    return [
        Job(
            prompt=fields["prompt"],
            seed=fields["seed"] + place % count,
            name=_name(fields.get("name"), place, number=first + place),
            negative=fields.get("negative", ""),
            scale=fields.get("scale"),
            image=images[place // count],
            mask=None if mask is None else Path(str(mask)),
            strength=fields.get("strength"),
        )
        for place in range(count * len(images))
    ]


def _name(name: str | None, place: int, *, number: int) -> str:
    """Number of the picture; where its line has a name that, and for the second one `<name>_1`."""
    if name is None:
        return f"{number:04d}"
    return f"{name}_{place}" if place else name


def pictures_at(path: Path) -> list[Path]:
    """A file, or the pictures in a folder by name; not those of folders in it.

    Raises:
        UserError: a folder without any.
    """
    if not os.path.isdir(path):
        return [path]
    found = [path / name for name in find_pictures(path).pictures if "/" not in name]
    if not found:
        raise UserError(f"image={path} holds no picture: it must end in {', '.join(SUFFIXES)}")
    return found
