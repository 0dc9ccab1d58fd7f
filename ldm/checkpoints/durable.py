"""Files and folders that appear whole and stay: each is on disk before the next thing happens."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync(path: Path) -> None:
    """Forces a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> Path:
    """A folder with its parents, and the names of all of them on disk."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync(path.parent)
    return path


def temporary(folder: Path) -> Path:
    """A name in a folder that nothing else has, and that `sweep` removes."""
    return folder / f".tmp-{uuid.uuid4().hex}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where to write a file that then takes its name whole, over the one that was there, or not at all."""
    draft = temporary(path.parent)
    try:
        yield draft
        fsync(draft)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Writes a text whole or not at all, over the one that was there."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def publish(draft: Path, path: Path) -> None:
    """Gives a finished folder its name, with all that is in it on disk.

    Raises:
        OSError: the name is taken.
    """
    for each in sorted(draft.rglob("*"), reverse=True):  # a folder after what is in it
        fsync(each)
    fsync(draft)
    draft.rename(path)
    fsync(path.parent)


def discard(folder: Path) -> None:
    """Removes a folder, which is gone under its name before the first of its files is."""
    doomed = temporary(folder.parent)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def sweep(folder: Path) -> None:
    """Removes what interrupted writers left in a folder that has one writer."""
    for leftover in folder.glob(".tmp-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
