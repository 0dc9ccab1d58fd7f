"""The server's storage: a SQLite file lists jobs and pictures; the pictures are PNG files beside it.

Everything is found by an id that the server has made: no name of a request becomes a path.
"""

import io
import itertools
import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from ldm import UserError
from ldm.io.pictures import encode_png
from ldm.io.writing import LinkRefused, check_no_link, discard, make_folder, open_plain, opened, write

# The lock is held until the process ends, however it ends. A killed process loses nothing that was stored; if
# the power fails the last entries may go, whose files are then unlisted.
TABLES = """
pragma locking_mode = exclusive;
pragma journal_mode = wal;
pragma synchronous = normal;
begin exclusive;
create table if not exists jobs (id text primary key, created real, state text, content text);
create table if not exists pictures (id text primary key, created real, job text, kind text, content text);
create table if not exists strips (id text primary key, png blob);
create index if not exists newest_jobs on jobs (created);
create index if not exists newest_pictures on pictures (kind, created);
delete from jobs where id not in (select id from jobs order by created desc limit 10000);
commit;
"""
THUMBNAIL = 256
UNLISTED, UNLISTED_BYTES = 2_000, 2**31  # uploads and pictures of comparisons that are kept
# uploads that a picture in the history, or a job, was started from
SOURCES = " union ".join(
    f"select json_extract(content, '$.request.source.{field}') from {table}"
    for field in ("picture", "mask")
    for table in ("pictures", "jobs")
)
UNFINISHED = ("queued", "running")
RESTARTED = "the server was stopped before this was finished: generate it again"


def new_id() -> str:
    """An id that can't be guessed: 16 hexadecimal digits."""
    return secrets.token_hex(8)


class History:
    """The folder of a server's state, for one server at a time; it is made if it is missing.

    Raises UserError where another server has it, or it can't be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._lock = folder, threading.RLock()
        file = make_folder(folder) / "serve.sqlite"
        check_no_link(file)
        try:
            self._base = sqlite3.connect(file, check_same_thread=False, timeout=0, isolation_level=None)
            self._base.executescript(TABLES)
        except sqlite3.OperationalError as error:
            busy = "locked" in str(error)
            reason = "another server uses it" if busy else f"it can't be written to ({error})"
            raise UserError(f"state={folder}: {reason}: name another folder") from error
        except sqlite3.DatabaseError as error:
            raise UserError(f"{file} is damaged ({error}): move it away") from error
        self._interrupt()

    def close(self) -> None:
        """Marks what is unfinished, and lets another server have the folder."""
        with self._lock:
            self._interrupt()
            self._base.close()

    def _interrupt(self) -> None:
        for job in self._select("select content from jobs where state in (?, ?)", UNFINISHED):
            now = {"state": "interrupted", "error": RESTARTED, "position": None, "seconds_left": None}
            self.put_job(job | now | {"previews": [None] * len(job["seeds"])})

    def _select(self, query: str, values: Iterable[Any]) -> list[dict[str, Any]]:
        with self._lock:
            return [json.loads(row[0]) for row in self._base.execute(query, tuple(values))]

    def put_job(self, job: Mapping[str, Any]) -> None:
        """Stores a job under its id."""
        row = (job["id"], job["created"], job["state"], json.dumps(job))
        with self._lock:
            self._base.execute("insert or replace into jobs values (?, ?, ?, ?)", row)

    def job(self, job: str) -> dict[str, Any] | None:
        """A stored job; None where there is none."""
        return next(iter(self._select("select content from jobs where id = ?", [job])), None)

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """The newest jobs, newest first."""
        return self._select("select content from jobs order by created desc limit ?", [limit])

    def add(self, kind: str, picture: bytes, facts: Mapping[str, Any], *, strip: bytes = b"") -> str:
        """Stores a PNG with what is to be listed of it; returns its id.

        Args:
            kind: `picture` of those that were generated, `upload` of those to start from.
            strip: the previews of its steps, as one PNG.
        """
        name, created = new_id(), time.time()
        write(self.path(name), picture, below=self.folder)
        content = {"id": name, "created": created, "bytes": len(picture), **facts}
        with self._lock:  # after its files: what is listed is there
            row = (name, created, facts.get("job"), kind, json.dumps(content))
            self._base.execute("insert into pictures values (?, ?, ?, ?, ?)", row)
            if strip:
                self._base.execute("insert into strips values (?, ?)", (name, strip))
        if kind != "picture":
            self._sweep()
        return name

    def _sweep(self) -> None:
        """Removes the oldest pictures beyond the limits that no history lists and no job started from."""
        query = "select id, json_extract(content, '$.bytes') from pictures where kind != 'picture'"
        with self._lock:
            found = self._base.execute(f"{query} order by created desc").fetchall()
            sums = itertools.accumulate(size or 0 for _, size in found)
            beyond = (place >= UNLISTED or held > UNLISTED_BYTES for place, held in enumerate(sums))
            old = [row[0] for row, is_beyond in zip(found, beyond, strict=True) if is_beyond]
            used = {row[0] for row in self._base.execute(SOURCES)} if old else set()
        for name in old:
            if name not in used:
                self.delete(name)

    def path(self, name: str) -> Path:
        """The file of an id that `facts` knows."""
        return self.folder / "pictures" / name[:2] / f"{name}.png"

    def facts(self, name: str, kind: str | None = None) -> dict[str, Any] | None:
        """The entry of a picture in the list; None if there is no such picture, or it is of another kind."""
        found = self._select(
            "select content from pictures where id = ? and kind = coalesce(?, kind)", [name, kind]
        )
        return found[0] if found and self.path(name).is_file() else None

    def strip(self, name: str) -> bytes | None:
        """The previews of a picture's steps beside each other, as one PNG; None where there are none."""
        with self._lock:
            row = self._base.execute("select png from strips where id = ?", [name]).fetchone()
        return None if row is None else bytes(row[0])

    def read(self, name: str) -> bytes | None:
        """The bytes of a picture; None where there is none."""
        if self.facts(name) is None:
            return None
        path = self.path(name)
        try:
            with (
                opened(path.parent, below=self.folder) as folder,
                os.fdopen(open_plain(folder, path, os.O_RDONLY), "rb") as file,
            ):
                return file.read()
        except (OSError, LinkRefused):
            return None

    def thumbnail(self, name: str) -> bytes | None:
        """A PNG of at most `THUMBNAIL` pixels a side; None where there is none, or a damaged one."""
        data = self.read(name)
        if data is None:
            return None
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
                picture.thumbnail((THUMBNAIL, THUMBNAIL))
                bare = Image.frombytes(picture.mode, picture.size, picture.tobytes())
        except (OSError, SyntaxError):  # as Pillow says of damage
            return None
        return encode_png(bare, pnginfo=None)

    def list(self, *, before: float | None = None, limit: int = 50) -> "list[dict[str, Any]]":
        """Generated pictures, newest first, that are older than a time in seconds."""
        where = "kind = 'picture' and created < ?"
        query = f"select content from pictures where {where} order by created desc limit ?"
        return self._select(query, [float("inf") if before is None else before, limit])

    def names(self) -> "list[str]":
        """The ids of all generated pictures, newest first."""
        query = "select id from pictures where kind = 'picture' order by created desc"
        with self._lock:
            return [row[0] for row in self._base.execute(query)]

    def delete(self, name: str) -> bool:
        """Removes a picture with its files; False where there was none."""
        with self._lock:
            gone = self._base.execute("delete from pictures where id = ?", [name]).rowcount > 0
            self._base.execute("delete from strips where id = ?", [name])
        if gone:
            with suppress(FileNotFoundError):
                discard(self.path(name), below=self.folder)
        return gone
