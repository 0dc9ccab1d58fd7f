"""Files and folders that appear whole, stay on disk, and are never written or removed through a link.

The rule begins below the folder that the user named, `below`, by default the one that holds the file: it may
itself be a link or lie under links, as people link their data disks, but no name inside it is followed.
Everything works on descriptors of folders, since a name could be swapped for a link between a check of its
path and its use.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ldm import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DESCRIPTORS = Path("/proc/self/fd")  # by number, what this process has open
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
OWN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a pipe in a file's place must not hang
DRAFT = ".tmp-"  # what the names of unfinished files and folders begin with
LEFTOVER = re.compile(r"\.tmp(-.*|\w{6})")  # the second form is that of the safetensors library


class LinkRefused(UserError):
    """A link, pipe or device has the name of a file or folder that is to be written."""


class CannotWrite(OSError, UserError):
    """The system refuses to write a file or folder."""


class DiskFull(CannotWrite):
    """No room on the disk of `path`, whose `size` is in bytes and 0 if unknown; `errno` is the system's."""

    def __init__(self, number: int, path: Path, size: int) -> None:
        super().__init__(number, os.strerror(number))
        self.path, self.size, self.free = path, size, free_bytes(path.parent)

    def __reduce__(self) -> tuple[Any, ...]:  # a process may hand it to another one
        return DiskFull, (self.errno, self.path, self.size)

    def __str__(self) -> str:
        needed = f"{self.size:,} bytes are needed and " if self.size else ""
        return (
            f"{self.path} can't be written ({self.strerror}): {needed}{self.free:,} bytes are free on its "
            "disk; make room there, or name a folder elsewhere"
        )


class NameTaken(FileExistsError, UserError):
    """The name of a new folder or file is taken."""


@contextmanager
def writing(path: Path, *, below: Path | None = None, size: int = 0) -> Iterator[BinaryIO]:
    """A stream whose bytes replace the file once the block ends without an error.

    Args:
        below: the folder that the user named; what lacks between it and the file is made (or LinkRefused).
        size: bytes that will be written, if known: their room is claimed first, or DiskFull is raised.
    """
    with _replacing(path, below, size) as (_, stream):
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno in FULL:  # other errors: the file system cannot claim room, only write
                    raise
        yield stream


@contextmanager
def drafting(path: Path, *, below: Path | None = None, size: int = 0) -> Iterator[Path]:
    """As `writing`, for libraries that need a path: yields the path at which to write the file."""
    with _replacing(path, below, size) as (draft, stream):
        _check_room(stream.fileno(), size)  # not claimed: the library may write to a file of its own first
        yield draft


def write(path: Path, content: str | bytes, *, below: Path | None = None) -> Path:
    """Writes bytes or a text, what UTF-8 can't hold as escapes, as `writing` does; returns the path."""
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with writing(path, below=below, size=len(data)) as stream:
        stream.write(data)
    return path


@contextmanager
def appending(path: Path, *, below: Path | None = None) -> Iterator[BinaryIO]:
    """A stream that appends to a file, which may be new; a hard link is copied first, to keep the other."""
    with explain_full_disk(path), opened(path.parent, below=below, make=True) as folder:
        stream = os.fdopen(open_plain(folder, path, os.O_RDWR | os.O_APPEND | os.O_CREAT), "a+b")
        if os.fstat(stream.fileno()).st_nlink > 1:
            with stream as shared, writing(path, below=below) as copy:
                shared.seek(0)
                shutil.copyfileobj(shared, copy)
            stream = os.fdopen(open_plain(folder, path, os.O_RDWR | os.O_APPEND), "a+b")
        with stream:
            yield stream


def append(path: Path, text: str, *, below: Path | None = None) -> None:
    """Appends a text to a file, which may be new."""
    with appending(path, below=below) as stream:
        stream.write(text.encode(errors="backslashreplace"))


def make_folder(path: Path, *, below: Path | None = None) -> Path:
    """Makes a folder and its parents, with their names on disk; LinkRefused if one of them is a link."""
    with explain_full_disk(path), opened(path, below=below, make=True):
        return path


@contextmanager
def new_folder(
    path: Path, *, below: Path | None = None, size: int = 0, claim: Callable[[], bool] | None = None
) -> Iterator[Path]:
    """A folder to fill, which gets its name once the block ends without an error, and else is removed.

    Args:
        size: bytes that will be written, if known; DiskFull if fewer are free.
        claim: called once the folder is filled; frees the name, or returns False to have the folder dropped.
            Without a claim the name must be free from the start, or NameTaken is raised.
    """
    with explain_full_disk(path, size), opened(path.parent, below=below, make=True) as parent:
        _check_room(parent, size)
        if claim is None and path.name in os.listdir(parent):
            raise NameTaken(f"{path} exists already: name another folder or remove it")
        name = DRAFT + uuid.uuid4().hex
        os.mkdir(name, dir_fd=parent)
        try:
            draft = enter(parent, path.with_name(name))
            try:
                yield reachable(draft, path.with_name(name))
                _settle(draft)
            finally:
                os.close(draft)
            # The contents are on disk before the name is: after a loss of power the name means a whole folder
            # or nothing. The parent's own entry comes last, so that the name survives once we return.
            if claim is None or claim():
                os.rename(name, path.name, src_dir_fd=parent, dst_dir_fd=parent)
                os.fsync(parent)
        finally:
            if name in os.listdir(parent):
                shutil.rmtree(name, ignore_errors=True, dir_fd=parent)


def discard(path: Path, *, below: Path | None = None) -> None:
    """Removes a file or folder, which is gone under its name before the first of its files is.

    A link goes, and what it leads to stays.
    """
    with opened(path.parent, below=below) as parent:
        doomed = DRAFT + uuid.uuid4().hex  # the next sweep removes it if this process is killed now
        os.rename(path.name, doomed, src_dir_fd=parent, dst_dir_fd=parent)
        _remove(parent, doomed)


def sweep(folder: Path, *, below: Path | None = None, shared: bool = False) -> None:
    """Removes what interrupted writers left in a folder, if it exists.

    In one that is `shared` other processes may be writing now, and their unfinished files stay.
    """
    with suppress(FileNotFoundError), opened(folder, below=below) as descriptor:
        for name in os.listdir(descriptor):
            if LEFTOVER.fullmatch(name) and not (shared and _in_use(descriptor, name)):
                _remove(descriptor, name)


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, or of the nearest existing one above it."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def explain_full_disk(path: Path, size: int = 0) -> Iterator[None]:
    """Turns the error of a full disk into DiskFull, and lets any other name `path` instead of its draft."""
    try:
        yield
    except OSError as error:
        # one that names a descriptor of ours, not a path, was raised inside the draft of a folder
        explained = isinstance(error, DiskFull) and not error.path.is_relative_to(DESCRIPTORS)
        if error.errno in FULL and not explained:
            raise DiskFull(error.errno, path, size or getattr(error, "size", 0)) from error
        if isinstance(error.filename, str) and LEFTOVER.fullmatch(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def opened(folder: Path, *, below: Path | None = None, make: bool = False) -> Iterator[int]:
    """Descriptor of a folder, reached from `below` (by default itself); LinkRefused if a link is on the way.

    `make` makes what is missing, with the names on disk.
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


@contextmanager
def _replacing(path: Path, below: Path | None, size: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Path and stream of a new file that replaces another one once it is whole and on disk."""
    with explain_full_disk(path, size), opened(path.parent, below=below, make=True) as folder:
        refuse_link(folder, path)
        name, stream = _draft(folder)
        with stream:
            try:
                yield reachable(folder, path.parent) / name, stream
                stream.flush()
                # The bytes before the name, or a loss of power may leave the name with none. By its name, for
                # a library may have put a file of its own in the draft's place.
                _settle_file(folder, name)
                os.replace(name, path.name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
                raise
        os.fsync(folder)  # and the name itself


def _draft(folder: int) -> tuple[str, BinaryIO]:
    """A new file that is locked while it is written, so that no other process removes it in `sweep`."""
    while True:
        name = DRAFT + uuid.uuid4().hex
        # O_EXCL: a link that somebody has put there under this name is not followed
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OWN, 0o666, dir_fd=folder)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else it was swept before it was locked
            return name, os.fdopen(descriptor, "w+b")
        os.close(descriptor)


def _in_use(folder: int, name: str) -> bool:
    """Whether a leftover is locked by the process that writes it, or is no file."""
    try:
        with os.fdopen(os.open(name, os.O_RDWR | OWN, dir_fd=folder), "rb+", 0) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a lock ends with its process: none is stale
    except OSError:
        return True
    return False


def _check_room(descriptor: int, size: int) -> None:
    """Raises the OSError of a full disk if fewer than `size` bytes are free on that of an open file."""
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _remove(folder: int, name: str) -> None:
    is_folder = stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    (shutil.rmtree if is_folder else os.unlink)(name, dir_fd=folder)


def _settle(folder: int) -> None:
    """Forces everything in a folder to disk: files first, then the folder that holds their names."""
    for _, _, files, inner in os.fwalk(dir_fd=folder, topdown=False):
        for name in sorted(files, reverse=True):
            _settle_file(inner, name)
        os.fsync(inner)


def _settle_file(folder: int, name: str) -> None:
    with os.fdopen(os.open(name, os.O_RDONLY | OWN, dir_fd=folder), "rb") as file:
        os.fsync(file.fileno())
