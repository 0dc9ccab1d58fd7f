"""Files and folders that appear whole, stay on disk, and are never written or removed through a link.

A run, a data set or an output folder of somebody else may hold links. The rule begins below the folder that
the user named, `below`: it may itself be a link, or lie under links, as people link their data disks, but no
name inside it is followed (`links.py`), and what a link leads to keeps its bytes. Where `below` is not given,
it is the folder that holds the file.

Everything works on descriptors of folders, not on paths: a name that somebody swaps for a link between a
check and its use would else lead elsewhere.
"""

import errno
import fcntl
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ldm import UserError
from ldm.io.links import (
    DESCRIPTORS,
    FULL,
    OWN,
    CannotWrite,
    enter,
    open_plain,
    opened,
    reachable,
    refuse_link,
)

DRAFT = ".tmp-"  # what the names of unfinished files and folders begin with
LEFTOVER = re.compile(r"\.tmp(-.*|\w{6})")  # the second form is that of the safetensors library


class DiskFull(CannotWrite):
    """No room on a disk, in a sentence; `errno` and `strerror` are the system's.

    Args:
        path: of what was written.
        size: its bytes, 0 if they are not known.
    """

    def __init__(self, number: int, path: Path, size: int) -> None:
        super().__init__(number, os.strerror(number))
        self.path, self.size = path, size
        needed = f"{size:,} bytes are needed and " if size else ""
        self.sentence = (
            f"{path} can't be written ({self.strerror}): {needed}{free_bytes(path.parent):,} bytes are free "
            "on its disk; make room there, or name a folder elsewhere"
        )

    def __reduce__(self) -> tuple[Any, ...]:  # a process may hand it to another one
        return DiskFull, (self.errno, self.path, self.size)

    def __str__(self) -> str:
        return self.sentence


class NameTaken(FileExistsError, UserError):
    """A new folder or file has the name of one that is there already."""


@contextmanager
def writing(path: Path, *, below: Path | None = None, size: int = 0) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file once the block ends well, in place of the one that was there.

    Args:
        below: the folder that the user named; folders between it and the file are made.
        size: bytes that will be written, if known: their room is claimed first.

    Raises:
        LinkRefused: the file, or a folder on the way to it, is a link.
        DiskFull: there is no room.
    """
    with _replacing(path, below, size) as (_, stream):
        if size and hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(stream.fileno(), 0, size)
            except OSError as error:
                if error.errno in FULL:  # else the file system can't, and the writing itself will tell
                    raise
        yield stream


@contextmanager
def drafting(path: Path, *, below: Path | None = None, size: int = 0) -> Iterator[Path]:
    """As `writing`, for libraries that write to paths alone: a path at which to write the file."""
    with _replacing(path, below, size) as (draft, stream):
        _check_room(stream.fileno(), size)  # not claimed: the library may write to a file of its own first
        yield draft


def write(path: Path, content: str | bytes, *, below: Path | None = None) -> Path:
    """Writes a text or bytes as `writing` does; returns the path."""
    data = content.encode() if isinstance(content, str) else content
    with writing(path, below=below, size=len(data)) as stream:
        stream.write(data)
    return path


def save_tensors(
    tensors: Mapping[str, Any], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes contiguous tensors to a new safetensors file, at the path of a draft.

    Raises:
        OSError: the system's error, which the library knows as text alone.
    """
    from safetensors import SafetensorError  # imports torch, which most of what is written does without
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


@contextmanager
def appending(path: Path, *, below: Path | None = None) -> Iterator[BinaryIO]:
    """A stream that appends to a file, which may be new.

    A file that has a second name elsewhere (a hard link) is copied first: the other one keeps its bytes.
    """
    with full_disk_told(path), opened(path.parent, below=below, make=True) as folder:
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
        stream.write(text.encode())


def make_folder(path: Path, *, below: Path | None = None) -> Path:
    """Makes a folder with its parents, their names on disk; returns its path.

    Raises:
        LinkRefused: the folder, or one between it and `below`, is a link.
    """
    with full_disk_told(path), opened(path, below=below, make=True):
        return path


@contextmanager
def new_folder(
    path: Path, *, below: Path | None = None, size: int = 0, claim: Callable[[], bool] | None = None
) -> Iterator[Path]:
    """A folder to fill, which takes its name whole and on disk once the block ends well, or is gone.

    Args:
        below: the folder that the user named.
        size: bytes that will be written, if known: there must be as many free.
        claim: called once the folder is filled; makes way for it, or returns False to have it dropped.
            Without a claim the name must be free from the start.

    Raises:
        NameTaken: `path` is there already.
    """
    with full_disk_told(path, size), opened(path.parent, below=below, make=True) as parent:
        _check_room(parent, size)
        if claim is None and _exists(parent, path.name):
            raise NameTaken(f"{path} exists already: name another folder or remove it")
        name = _draft_name()
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
            if _exists(parent, name):
                shutil.rmtree(name, ignore_errors=True, dir_fd=parent)


def discard(path: Path, *, below: Path | None = None) -> None:
    """Removes a file or folder, which is gone under its name before the first of its files is.

    A link goes, and what it leads to stays.
    """
    with opened(path.parent, below=below) as parent:
        doomed = _draft_name()  # the next sweep removes it if this process is killed now
        os.rename(path.name, doomed, src_dir_fd=parent, dst_dir_fd=parent)
        _remove(parent, doomed)


def sweep(folder: Path, *, below: Path | None = None, shared: bool = False) -> None:
    """Removes what interrupted writers left in a folder, which may be absent.

    Args:
        shared: whether other processes may be writing there now; their unfinished files stay.
    """
    with suppress(FileNotFoundError), opened(folder, below=below) as descriptor:
        for name in os.listdir(descriptor):
            if LEFTOVER.fullmatch(name) and not (shared and _in_use(descriptor, name)):
                _remove(descriptor, name)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, or of the nearest one above it that is there."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


@contextmanager
def full_disk_told(path: Path, size: int = 0) -> Iterator[None]:
    """Puts a full disk into a sentence with the path, the bytes that are needed, if known, and the free ones.

    Raises:
        DiskFull: there was no room.
        OSError: whatever else the system answered, about `path` where it was about its draft.
    """
    try:
        yield
    except OSError as error:
        # one that names a descriptor of ours, not a path, was raised inside the draft of a folder
        told = isinstance(error, DiskFull) and not error.path.is_relative_to(DESCRIPTORS)
        if error.errno in FULL and not told:
            raise DiskFull(error.errno, path, size or getattr(error, "size", 0)) from error
        if isinstance(error.filename, str) and LEFTOVER.fullmatch(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def _replacing(path: Path, below: Path | None, size: int) -> Iterator[tuple[Path, BinaryIO]]:
    """Path and stream of a new file that takes the place of another one once it is whole and on disk."""
    with full_disk_told(path, size), opened(path.parent, below=below, make=True) as folder:
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


def _draft_name() -> str:
    return f"{DRAFT}{uuid.uuid4().hex}"


def _draft(folder: int) -> tuple[str, BinaryIO]:
    """A new file that is locked while it is written, so that no other process sweeps it away."""
    while True:
        name = _draft_name()
        # O_EXCL: a link that somebody has put there under this name is not followed
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | OWN, 0o666, dir_fd=folder)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:  # else it was swept before it was locked
            return name, os.fdopen(descriptor, "w+b")
        os.close(descriptor)


def _in_use(folder: int, name: str) -> bool:
    """Whether an unfinished file may still be written to, or is no file."""
    try:
        descriptor = os.open(name, os.O_RDWR | OWN, dir_fd=folder)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a lock ends with its process: no stale ones
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_room(descriptor: int, size: int) -> None:
    """Compares bytes that will be written with those that are free on the disk of what is open.

    Raises:
        OSError: there are fewer.
    """
    disk = os.fstatvfs(descriptor)
    if disk.f_bavail * disk.f_frsize < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _exists(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _remove(folder: int, name: str) -> None:
    if stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
        shutil.rmtree(name, dir_fd=folder)
    else:
        os.unlink(name, dir_fd=folder)


def _settle(folder: int) -> None:
    """Forces everything in a folder to disk: files first, then the folder that holds their names."""
    for _, _, files, inner in os.fwalk(dir_fd=folder, topdown=False):
        for name in sorted(files, reverse=True):
            _settle_file(inner, name)
        os.fsync(inner)


def _settle_file(folder: int, name: str) -> None:
    descriptor = os.open(name, os.O_RDONLY | OWN, dir_fd=folder)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
