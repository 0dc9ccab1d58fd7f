"""From a command, or a list and a command, to the pictures to draw."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.data.picture_files import SUFFIXES, find_pictures
from ldm.drawing.job import Job
from ldm.drawing.lists import Line, is_list, read_list
from ldm.randomness.seeds import check_seed

MOST = 100_000  # pictures a command


def asked_jobs(written: Mapping[str, Any], *, seed: int) -> list[Job]:
    """The pictures that a command asks for; `num_pictures` is spread evenly over the prompts.

    Raises:
        UserError: what can't be drawn, by its field, and its file and line if it stands in a list.
    """
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
    if not path.is_dir():
        return [path]
    found = [path / name for name in find_pictures(path).pictures if "/" not in name]
    if not found:
        raise UserError(f"image={path} holds no picture: it must end in {', '.join(SUFFIXES)}")
    return found
