"""The folder of a command's pictures: nothing of an earlier command stays, and nothing of a user's goes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm import UserError
from ldm.data.picture_files import LIST, listed_pictures
from ldm.generators.generator import Opened
from ldm.io.links import check_no_link
from ldm.io.pictures import FIGURE, carries, save_picture
from ldm.io.reading import is_plain_name, read_json
from ldm.io.writing import append, discard, write
from ldm.sampling.batches import configured
from ldm.sampling.jobs import Job
from ldm.sampling.record import FIELD, chunks, facts_of

SHEET = "sheet.png"
DOOMED = ".doomed.json"  # names that are being removed, while they are


def check_folder(folder: Path, jobs: Sequence[Job]) -> None:
    """Refuses a folder in which the pictures of a command would take the place of somebody else's files.

    Raises:
        UserError: a file that `ldm.sample` has not written, a link, or a picture to start from, by its name.
    """
    for name in (LIST, DOOMED):
        check_no_link(folder / name)
    earlier = listed_pictures(folder / LIST)
    if earlier is None and os.path.lexists(folder / LIST):
        raise UserError(f"out={folder} holds a {LIST} that ldm.sample has not written: name another folder")
    names = sorted({f"{job.name}.png" for job in jobs})
    for name in (
        names if earlier is not None else (SHEET, *names)
    ):  # earlier versions did not mark their sheets
        check_place(folder / name)
    going = {(folder / name).resolve() for name in [*names, *(earlier or [])]}
    for job in jobs:
        for field, file in (("image", job.image), ("mask", job.mask)):
            if file is not None and file.resolve() in going:
                raise UserError(
                    f"{field}={file} would be removed, for out={folder} is drawn anew: name another folder"
                )


def check_place(path: Path) -> None:
    """Refuses to put a picture in the place of somebody else's file, or of a link.

    Raises:
        UserError: its name.
    """
    if os.path.lexists(path) and not _is_ours(path):
        raise UserError(
            f"out={path.parent} holds {path.name}, which ldm.sample has not written: name another folder"
        )


def clear(folder: Path) -> None:
    """Removes pictures and sheet of earlier commands and begins a new list.

    Whenever the command is stopped, the list names no picture that is gone: the names are put aside first,
    and what a stopped command has left of them goes with the next one.
    """
    names = {SHEET, *_put_aside(folder), *(listed_pictures(folder / LIST) or [])}
    write(folder / DOOMED, json.dumps(sorted(names)))
    write(folder / LIST, "")
    for name in filter(lambda name: _is_ours(folder / name), sorted(names)):
        discard(folder / name, below=folder)
    discard(folder / DOOMED, below=folder)


def _put_aside(folder: Path) -> list[str]:
    try:
        names = read_json(folder / DOOMED)
    except (OSError, ValueError):
        return []
    return [name for name in names if is_plain_name(name)] if isinstance(names, list) else []


def _is_ours(path: Path) -> bool:
    """Whether a file carries a record of ours: a user may have put another one, or a link, in its place."""
    return path.is_file() and not path.is_symlink() and carries(path, FIGURE if path.name == SHEET else FIELD)


class Saver:
    """Writes `<name>.png` and a line of `pictures.jsonl` for each picture of one command.

    Args:
        folder: where they go; what an earlier command has left there is removed.
        opened: what generates them, for the records.
    """

    def __init__(self, folder: Path, opened: Opened) -> None:
        self.folder, self.opened = folder, opened
        clear(folder)

    def save(self, jobs: Sequence[Job], images: Tensor) -> None:
        """Writes one batch, in the order in which it was generated."""
        opened = configured(self.opened, jobs[0])  # the jobs of a batch share their options
        for place, (job, image) in enumerate(zip(jobs, images, strict=True)):
            facts = facts_of(job, opened, batch=(place, len(jobs)))
            file = self.folder / f"{job.name}.png"
            save_picture(image, file, texts=chunks(facts), below=self.folder)
            append(self.folder / LIST, json.dumps({"file": file.name} | facts, ensure_ascii=False) + "\n")
