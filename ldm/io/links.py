"""Opens files and folders below a folder without following links, name by name from the descriptor above."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ldm import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DESCRIPTORS = Path("/proc/self/fd")  # by number, what this process has open
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OWN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a pipe in a file's place must not hang


class LinkRefused(UserError):
    """A link, pipe or device has the name of a file or folder that is to be written."""


class CannotWrite(OSError, UserError):
    """The system refuses to write a file or folder."""


@contextmanager
def opened(folder: Path, *, below: Path | None = None, make: bool = False) -> Iterator[int]:
    """Descriptor of a folder, reached from `below` (by default itself); LinkRefused if a link is on the way.

    Args:
        make: makes what is missing, with the names on disk.
    """
    base = folder if below is None else below
    if make:
        _make_base(base)
    descriptor, place = os.open(base, FOLDER), base
    try:
        for part in folder.relative_to(base).parts:
            place /= part
            inner = enter(descriptor, place, make=make)
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


def enter(folder: int, place: Path, *, make: bool = False) -> int:
    """Descriptor of the folder `place`, opened by its name in an open folder; LinkRefused if it is a link."""
    if place.name in ("", ".."):
        raise LinkRefused(f"{place} leads out of its folder: name a folder inside it")
    if make:
        with suppress(FileExistsError):
            os.mkdir(place.name, dir_fd=folder)
            os.fsync(folder)
    try:
        return os.open(place.name, FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        refuse_link(folder, place)
        raise OSError(error.errno, error.strerror, str(place)) from None


def open_plain(folder: int, path: Path, flags: int) -> int:
    """Descriptor of a file, opened by its name in an open folder; LinkRefused for a link, pipe or device."""
    try:
        descriptor = os.open(path.name, flags | OWN, 0o666, dir_fd=folder)
    except OSError as error:
        refuse_link(folder, path)
        raise OSError(error.errno, error.strerror, str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise LinkRefused(f"{path} is a pipe or a device, and nothing is written to it: remove it")
    return descriptor


def refuse_link(folder: int, path: Path) -> None:
    """Raises LinkRefused, with the link's target, if the name of `path` in an open folder is a link."""
    with suppress(OSError):  # it is no link
        target = os.readlink(path.name, dir_fd=folder)
        raise LinkRefused(
            f"{path} is a link to {target}, and nothing is written, locked or removed through a link: "
            "put a file or folder in its place, or name another folder"
        )


def check_no_link(path: Path) -> None:
    """Raises LinkRefused if a file is a link, so that a command can end before its work, not after it."""
    with opened(path.parent) as folder:
        refuse_link(folder, path)


def reachable(descriptor: int, path: Path) -> Path:
    """A path to an open folder that no swapped link can redirect; its own path on systems without /proc."""
    own = DESCRIPTORS / str(descriptor)
    return own if own.exists() else path


def _make_base(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_base(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise CannotWrite(f"{folder} can't be made ({error.strerror}): name another folder") from error
    with opened(folder.parent) as parent:
        os.fsync(parent)
