"""Exclusive lock on a run directory; the error names the process that holds it."""

import errno
import fcntl
import os
import socket
from pathlib import Path

from ldm import UserError
from ldm.io.links import open_plain, opened
from ldm.io.writing import make_folder

LOCK = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
_HELD: set[tuple[int, int]] = (
    set()
)  # device and inode of the locks, open until the process ends: that frees them


def hold(
    folder: Path, *, below: Path | None = None, instead: str = "make a run of your own with resume=never"
) -> None:
    """Takes a folder for this process until it ends; to take it again is fine.

    A POSIX record lock, not flock: it isn't shared with forked loader processes, which may outlive a killed
    training by some seconds, and it holds over NFS. It ends with its process, so none is ever stale. Where
    the file system has no locks, that is said, and the folder is taken on trust.

    Args:
        below: the folder that the user named, if it is one above.
        instead: what else a user can do, for the refusal.

    Raises:
        UserError: another process has it, or a link is in the lock's place.
        OSError: the folder can't be written to.
    """
    path = make_folder(folder, below=below) / LOCK
    with opened(folder, below=below) as descriptor:
        if _identity(descriptor) in _HELD:
            return
        file = open_plain(descriptor, path, os.O_RDWR | os.O_CREAT)
        key = _identity(descriptor)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise _refusal(folder, file, instead) from None
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(
            f"{folder}: its file system has no locks, so let only one command at a time write there",
            flush=True,
        )
    if os.fstat(file).st_nlink == 1:  # else it has a second name elsewhere, under which it keeps its bytes
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    _HELD.add(key)


def _identity(folder: int) -> tuple[int, int] | None:
    """Device and inode of the lock in an open folder; to open it again and close it would free it."""
    try:
        found = os.stat(LOCK, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refusal(folder: Path, file: int, instead: str) -> UserError:
    """Names who has the folder, which it has written into the lock."""
    owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
    os.close(file)
    return UserError(f"{folder} is in use by {owner}: wait for it, end it, or {instead}")
