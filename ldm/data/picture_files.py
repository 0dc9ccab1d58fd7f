"""Which files are pictures: one rule for folders and tars, whoever reads them.

A picture's name ends in one of `SUFFIXES`, in any case, and no part of its path begins with a dot or is one
of `LEFTOVERS`. Where `ldm.sample` has left its `pictures.jsonl`, the pictures of that folder are the files
that it names. A PNG with the text `FIGURE` is a sheet or a curve of our commands, and no picture.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ldm import UserError
from ldm.io.pictures import FIGURE, carries
from ldm.io.reading import is_plain_name, parse_json

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
OTHERS = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jxl", ".tif", ".tiff")  # never decoded
LEFTOVERS = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # of systems, beside names as .DS_Store and ._a.jpg
LIST = "pictures.jsonl"  # of what `ldm.sample` has generated, a line each


class Found(NamedTuple):
    """The pictures of a folder, sorted, and reason -> files that look like pictures and are none.

    Names are paths in the folder, with / between folders.
    """

    pictures: list[str]
    passed_over: dict[str, list[str]]

    def sentences(self, folder: Path) -> list[str]:
        """What a user should know: each reason with the number of files and the first of them."""
        return [
            f"{folder}: {len(names)} of the files are passed over, {names[0]} first: {reason}"
            for reason, names in self.passed_over.items()
        ]


def is_hidden(name: str) -> bool:
    """Whether a path in a folder or tar is, or lies in, what a system left behind."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") or part in LEFTOVERS for part in parts)


def files_under(folder: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Paths of the files under a folder with one of the endings, outer folders first; hidden ones are not."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            path = Path(parent, name)
            if name.lower().endswith(endings) and not is_hidden(name) and path.is_file():
                yield path.relative_to(folder).as_posix()


def find_pictures(folder: Path) -> Found:
    """The pictures in and under a folder. Raises UserError: a list of ours names a picture that is gone."""
    lists: dict[str, set[str]] = {}  # folder -> the paths that its list names
    for path in files_under(folder, (LIST,)):
        parent = path.removesuffix(LIST)
        # files_under also yields x_pictures.jsonl; and inside a folder with a list no other list counts
        if f"/{path}".endswith(f"/{LIST}") and not path.startswith(tuple(lists)):
            names = listed_pictures(folder / path)
            if names is not None:
                lists[parent] = {f"{parent}{name}" for name in names}
    found = Found([], {})
    for name in sorted(files_under(folder, SUFFIXES + OTHERS), key=lambda name: name.split("/")):
        if reason := _no_picture(folder, name, lists):
            found.passed_over.setdefault(reason, []).append(name)
        else:
            found.pictures.append(name)
    if gone := sorted(set().union(*lists.values()).difference(found.pictures)):
        raise UserError(f"{folder}: {LIST} names {gone[0]}, which is not there: take its line out")
    return found


def _no_picture(folder: Path, name: str, lists: dict[str, set[str]]) -> str:
    """Why a file that looks like a picture is none, or nothing."""
    for parent, names in lists.items():
        if name.startswith(parent):
            return "" if name in names else f"{LIST} of ldm.sample does not name them"
    if name.lower().endswith(OTHERS):
        return f"only {', '.join(SUFFIXES)} are read"
    return "figures that our own commands wrote" if carries(folder / name, FIGURE) else ""


def listed_pictures(path: Path) -> list[str] | None:
    """The files that a `pictures.jsonl` names, or None where the file is missing or not one of ours.

    A last line that is cut, as a process that is killed may leave it, names nothing.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else [b""]  # a pipe would never end
        entries = [parse_json(line, name=LIST) for line in lines]
        names = [entry["file"] for entry in entries if entry["bundle"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return names if all(map(is_plain_name, names)) else None
