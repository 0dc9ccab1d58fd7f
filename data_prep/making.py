"""One shard of a preparation (what it is made of, making it, and the note that says it is whole), and many of
them over several processes.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import islice
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from data_prep.pairing import Entry
from data_prep.pictures import PictureRules, prepare_picture
from data_prep.tally import LeftOut, Tally
from ldm.data import DataError
from ldm.data.index import Shard
from ldm.data.shards import Sample, write_shard
from ldm.io.reading import hash_file, read_json
from ldm.io.writing import write

if TYPE_CHECKING:
    from ldm.tokenizers import Tokenizer

NOTES = ".notes"  # folder of the notes; gone once the index is there


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to be made: where, of what, by which rules, and the hash of the plan that it belongs to."""

    path: Path
    split: str
    entries: list[Entry]
    rules: PictureRules
    plan: str


@dataclass(kw_only=True)
class ShardNote:
    """What making a shard gave.

    Attributes:
        plan: hash of the plan.
        shard: its index entry.
        tally: what happened to its pictures.
        hashes: sha256 of each source picture's bytes as they were read, by key; of those left out, too.
        seconds: of processor time.
    """

    plan: str
    shard: Shard
    tally: Tally
    hashes: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def make_shard(task: ShardTask) -> ShardNote:
    """Writes the shard, then its note."""
    started = time.process_time()
    tally, hashes = Tally(), {}
    shard = write_shard(_samples(task, tally, hashes), task.path, split=task.split)
    note = ShardNote(
        plan=task.plan, shard=shard, tally=tally, hashes=hashes, seconds=time.process_time() - started
    )
    write(note_path(task.path), json.dumps(asdict(note)), below=task.path.parent)
    return note


def _samples(task: ShardTask, tally: Tally, hashes: dict[str, str]) -> Iterator[Sample]:
    for entry in task.entries:
        try:
            data = entry.place.read()
            hashes[entry.key] = hashlib.sha256(data).hexdigest()
            picture = prepare_picture(data, name=entry.name, rules=task.rules)
        except LeftOut as left:
            tally.leave_picture(str(left), entry.name)
            continue
        for change in picture.changes or ["stored byte for byte"]:
            tally.converted[change] = tally.converted.get(change, 0) + 1
        clip = _clip()
        tally.long_captions += sum(clip.count(text) > clip.context_length for text in entry.texts)
        width, height = picture.size
        yield Sample(
            key=entry.key,
            image=picture.image,
            extension=picture.extension,
            texts=entry.texts,
            comment_nos=entry.comment_nos,
            metadata={"image": printable(entry.name), "width": width, "height": height},
        )


def note_path(path: Path) -> Path:
    """Where the note of a shard lies."""
    return path.parent / NOTES / f"{path.name}.json"


def source_hashes(entries: Iterable[Entry]) -> dict[str, str]:
    """sha256 of the bytes of each picture that can be read, by key.

    Reading sizes and time stamps would be faster, but a copy may keep both, and a moved source changes the
    stamps of pictures that are the same.
    """
    hashes = {}
    for entry in entries:
        with suppress(LeftOut):
            hashes[entry.key] = hashlib.sha256(entry.place.read()).hexdigest()
    return hashes


def finished(task: ShardTask) -> ShardNote | None:
    """The note of a shard that was made by the same plan from the same bytes and is whole, or None."""
    try:
        entry = read_json(note_path(task.path))
        if entry["plan"] != task.plan or hash_file(task.path) != entry["shard"]["sha256"]:
            return None
        if entry["hashes"] != source_hashes(task.entries):
            return None
        shard, tally = Shard(**entry["shard"]), Tally(**entry["tally"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return ShardNote(**(entry | {"shard": shard, "tally": tally}))


def write_shards(
    samples: Iterable[Sample], *, root: Path, split: str, samples_per_shard: int = 1024
) -> Iterator[Shard]:
    """Writes `<split>-000000.tar` and so on, and yields each shard's index entry once it is on disk."""
    samples = iter(samples)
    chunks = iter(lambda: list(islice(samples, samples_per_shard)), [])
    for number, chunk in enumerate(chunks):
        yield write_shard(chunk, root / f"{split}-{number:06d}.tar", split=split)


Task = TypeVar("Task")
Result = TypeVar("Result")


def over_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, num_workers: int
) -> Iterator[Result]:
    """`function` of every task, in the order in which they end; with `num_workers=0` in this process.

    Raises DataError: a worker was killed. What a task raises comes through; tasks not yet begun are dropped.
    """
    if not num_workers:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(num_workers, initializer=_end_with_parent) as pool:
        try:
            futures = [pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for want of memory: run the same command again to"
                " resume, with a smaller num_workers if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Ends a worker whose command was killed: it would wait for tasks for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def printable(path: str) -> str:
    """A path as a text for UTF-8: bytes of it that are not are written as `\\udcXX`."""
    return path.encode("utf-8", "backslashreplace").decode()


@lru_cache(maxsize=1)
def _clip() -> "Tokenizer":
    from ldm.tokenizers.clip_vocabulary import clip_bpe  # imports torch, seconds that --help does without

    return clip_bpe()
