"""The output folder of `ldm.sample`. Pictures of earlier commands are removed; the user's files never are."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ldm import UserError
from ldm.data.picture_files import LIST, listed_pictures
from ldm.io.pictures import FIGURE, carries, save_picture
from ldm.io.reading import is_plain_name, read_json
from ldm.io.writing import append, check_no_link, discard, write
from ldm.sampling.batches import Sample
from ldm.sampling.jobs import Job
from ldm.sampling.record import FIELD, chunks

SHEET = "sheet.png"
DOOMED = ".doomed.json"  # the names that are being removed, in case that the command is stopped meanwhile


def open_output(folder: str, *, overwrite: bool) -> Path:
    """The folder for the pictures, made if it is missing.

    Raises UserError where it is a file, can't be written to, or holds pictures that must not be overwritten.
    """
    out = Path(folder)
    if out.exists() and not out.is_dir():
        raise UserError(f"out={out} is a file: name a folder")
    if out.is_dir() and not overwrite and any(out.glob("*.png")):
        raise UserError(f"out={out} holds pictures already: name another folder or set overwrite=true")
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):  # else found out after the first batch, which may take minutes
        raise UserError(f"out={out} can't be written to: name another folder")
    return out


def check_output(folder: Path, jobs: Sequence[Job], sheet: Path) -> None:
    """Refuses to write a command's pictures in the place of files that `ldm.sample` has not written.

    Raises UserError, by its name, for such a file, a link, a source picture, or the sheet's missing folder.
    """
    if not sheet.parent.is_dir():
        raise UserError(f"sheet={sheet} has no folder: make {sheet.parent} first")
    for path in (folder / LIST, folder / DOOMED, sheet):
        check_no_link(path)
    earlier = listed_pictures(folder / LIST)
    if earlier is None and os.path.lexists(folder / LIST):
        raise UserError(f"out={folder} holds a {LIST} that ldm.sample has not written: name another folder")
    names = sorted({f"{job.name}.png" for job in jobs})
    for name in names if earlier is not None else (SHEET, *names):  # earlier versions did not mark sheets
        check_place(folder / name)
    # resolved: the same file may be named by two paths
    going = {(folder / name).resolve() for name in (*names, *(earlier or ()))}
    for job in jobs:
        for field, file in (("image", job.image), ("mask", job.mask)):
            if file is not None and file.resolve() in going:
                raise UserError(
                    f"{field}={file} would be removed with the earlier pictures of out={folder}: name another"
                    " folder"
                )


def check_place(path: Path) -> None:
    """Refuses to put a picture in the place of a file that is not ours, or of a link; raises UserError."""
    if os.path.lexists(path) and not _is_ours(path):
        raise UserError(f"out={path.parent} holds {path.name}, which ldm.sample has not written: move it")


def clear(folder: Path) -> None:
    """Removes pictures and sheet of earlier commands and begins a new list."""
    names = {SHEET, *_put_aside(folder), *(listed_pictures(folder / LIST) or ())}
    # in this order, whenever the command is stopped, the list names no picture that is gone, and the next
    # command removes what is left
    write(folder / DOOMED, json.dumps(sorted(names)))
    write(folder / LIST, "")
    for name in sorted(names):
        if _is_ours(folder / name):
            discard(folder / name, below=folder)
    discard(folder / DOOMED, below=folder)


def save(sample: Sample, folder: Path) -> None:
    """Writes `<name>.png`, then its line of `pictures.jsonl`, which so names whole files only."""
    file = folder / f"{sample.job.name}.png"
    save_picture(sample.image, file, texts=chunks(sample.facts), below=folder)
    append(folder / LIST, json.dumps({"file": file.name} | sample.facts, ensure_ascii=False) + "\n")


def _put_aside(folder: Path) -> list[str]:
    """The names that a stopped command was removing."""
    try:
        names = read_json(folder / DOOMED)
    except (OSError, ValueError):
        return []
    return [name for name in names if is_plain_name(name)] if isinstance(names, list) else []


def _is_ours(path: Path) -> bool:
    """Whether a file carries a record of ours: a user may have put another one, or a link, in its place."""
    return path.is_file() and not path.is_symlink() and carries(path, FIGURE if path.name == SHEET else FIELD)
