"""One process a run: who else wants it is told who has it."""

import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import TextIO

LOCK = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
_HELD: dict[Path, TextIO] = {}  # open until the process ends, however it ends: that frees the locks


def hold(folder: Path) -> None:
    """Takes a folder for this process until it ends; to take it again is fine.

    A POSIX record lock, not flock: it isn't shared with forked loader processes, which may outlive a killed
    training by some seconds, and it holds over NFS. It ends with its process, so none is ever stale. Where
    the file system has no locks, that is said, and the folder is taken on trust.

    Raises:
        ValueError: another process has it.
        OSError: the folder can't be written to.
    """
    path = (folder / LOCK).resolve()
    if path in _HELD:
        return
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in TAKEN:
            raise _refusal(folder, file) from None
        if error.errno not in WITHOUT_LOCKS:
            raise
        print(f"{folder}: its file system has no locks, so train each run with one command only", flush=True)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _HELD[path] = file


def _refusal(folder: Path, file: TextIO) -> ValueError:
    """Names who has the folder, which it has written into the lock."""
    file.seek(0)
    owner = file.read().strip() or "another process"
    file.close()
    return ValueError(
        f"{folder} is in use by {owner}: wait for it, end it, or make a run of your own with resume=never"
    )
