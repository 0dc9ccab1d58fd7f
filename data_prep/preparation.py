"""From a collection of captioned pictures to a set of shards, over processes, whatever stops it.

Shards come one by one, each with a note; those of the same plan are kept when the command is run again. The
report comes before the index, and the index last: a set with an index is whole.
"""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import PIL
from tqdm import tqdm

from data_prep.making import (
    NOTES,
    ShardNote,
    ShardTask,
    finished,
    make_shard,
    note_path,
    over_processes,
    printable,
    source_hashes,
)
from data_prep.options import LISTED, PreparationOptions
from data_prep.pairing import Collection
from data_prep.reports import Speed, check_left_out, describe, read_report, write_report
from data_prep.splits import SPLITS, draw_splits, read_splits, write_splits
from ldm.data import DataError
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.io.writing import DiskFull, discard, make_folder, open_plain, opened, sweep

RULES = 3  # counts changes of the rules for pictures and captions


def prepare(collection: Collection, options: PreparationOptions, *, name: str) -> None:
    """Writes the set, or what it lacks; leaves a complete one alone.

    Raises DataError: too much is left out, another set is there, or something stopped the work.
    """
    root = Path(options.out)
    with answered_disk(root), sole_writer(root):
        splits = choose_splits(collection, options)
        print(f"{options.source}: {collection.sentence()}")
        tasks = plan_shards(collection, splits, options)
        if is_complete(root, tasks):
            return
        limit, left = options.max_skip_share, len(collection.entries)
        check_left_out(root, collection, limit=limit, left=left, report={"complete": False})
        check_splits(collection, splits, options)
        split_sha256 = write_splits(root, splits)
        notes, speed = make_shards(root, tasks, options)
        for task in tasks:
            collection.tally.add(notes[task.path].tally)
        ordered = [notes[task.path] for task in tasks]
        report = describe(collection, splits, ordered, speed) | {
            "split_sha256": split_sha256,
            "options": asdict(options),
            "plan": tasks[0].plan,
            "sources": identity(note.hashes for note in ordered),
        }
        left = report["written"]["pictures"]
        check_left_out(root, collection, limit=limit, left=left, report=report | {"complete": False})
        write_report(root, report | {"complete": True})
        ShardIndex(root=root, name=printable(name), shards=tuple(note.shard for note in ordered)).save()
        discard(root / NOTES, below=root)
    print_summary(root, report)


@contextmanager
def answered_disk(root: Path) -> Iterator[None]:
    """A full or read-only disk, in one sentence."""
    try:
        yield
    except OSError as error:
        told = f"{root} can't be written ({error.strerror or error}): choose another out="
        told = str(error) if isinstance(error, DiskFull) else told
        raise DataError(f"{told}, and run the same command again to resume") from error


@contextmanager
def sole_writer(root: Path) -> Iterator[None]:
    """Makes the folder and holds it against a second preparation; the lock ends with its processes."""
    with opened(root, make=True) as folder:
        lock = open_plain(folder, root / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        for _ in range(20):  # the workers of a killed command end within moments
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
        else:
            raise DataError(f"{root} is being prepared by another process: wait for it or end it")
        sweep(root)
        sweep(make_folder(root / NOTES, below=root), below=root)
        yield
    finally:
        os.close(lock)


def choose_splits(collection: Collection, options: PreparationOptions) -> dict[str, str]:
    """Key -> split of every entry that has one. Raises DataError: lists are asked for and there are none."""
    keys = [entry.key for entry in collection.entries]
    given = collection.splits
    if options.split_from:
        given = read_splits(Path(options.split_from))
        collection.forms.append(f"splits: {options.split_from}")
    if options.split in LISTED and not given:
        raise DataError(
            f"split={options.split}: no split lists in {options.source}; name them with split_from="
        )
    if options.split == "random" or not given:
        collection.forms.append(f"split drawn with seed={options.seed}")
        shares = {"val_share": options.val_share, "test_share": options.test_share}
        return draw_splits(keys, **shares, seed=options.seed)
    collection.splits = given
    return {key: given[key] for key in keys if key in given}


def check_splits(collection: Collection, splits: dict[str, str], options: PreparationOptions) -> None:
    """Says in one line that no picture is left to validate on. Raises DataError: none is left to train on."""
    random = f"write split=random val_share={max(options.val_share, 0.05):g} to draw the splits"
    if "train" not in splits.values():
        listed = sorted(key for key, split in collection.splits.items() if split == "train")
        example = f", they name {listed[0]}, the folder has {collection.entries[0].key}" if listed else ""
        raise DataError(
            f"{options.source}: none of its {len(collection.entries)} pictures is in the split train of the"
            f" lists{example}: {random}"
        )
    if "val" not in splits.values():
        print(f"{options.out}: no picture is left to validate on; if some should be, {random}")


def plan_shards(
    collection: Collection, splits: dict[str, str], options: PreparationOptions
) -> list[ShardTask]:
    """The shards to be made; the same source and options give the same plan, whatever the workers."""
    own = {name: [entry for entry in collection.entries if splits.get(entry.key) == name] for name in SPLITS}
    settings = {"rules": RULES, "pillow": PIL.__version__, "samples": options.samples_per_shard}
    plan = hashlib.sha256(json.dumps(settings | asdict(options.rules), sort_keys=True).encode())
    for split, entries in own.items():
        for entry in entries:
            place, captions = entry.place, (entry.texts, entry.comment_nos)
            plan.update(json.dumps((split, entry.name, place.offset, place.size, *captions)).encode())
    return [
        ShardTask(
            path=Path(options.out) / f"{split}-{first // options.samples_per_shard:06d}.tar",
            split=split,
            entries=entries[first : first + options.samples_per_shard],
            rules=options.rules,
            plan=plan.hexdigest(),
        )
        for split, entries in own.items()
        for first in range(0, len(entries), options.samples_per_shard)
    ]


def identity(hashes: Iterable[Mapping[str, str]]) -> str:
    """sha256 over the hashes of all source pictures."""
    merged = {key: digest for own in hashes for key, digest in own.items()}
    return hashlib.sha256(json.dumps(merged, sort_keys=True).encode()).hexdigest()


def is_complete(root: Path, tasks: list[ShardTask]) -> bool:
    """Whether the set that is planned is there already; a broken one is removed to be made anew.

    Shards and source pictures are read and hashed again, which takes as long as the disk needs for them.

    Raises DataError: a whole set of another plan, or of other pictures, is there.
    """
    if not (root / FILE_NAME).exists():
        return False
    try:
        index = ShardIndex.load(root)
        index.verify()
    except DataError as error:
        print(f"made anew: {error}")
        discard(root / FILE_NAME)
        return False
    report = read_report(root)
    # the reports of earlier versions don't tell their sources
    same = [task.plan for task in tasks[:1]] == [report.get("plan")] and (
        "sources" not in report
        or report["sources"] == identity(source_hashes(task.entries) for task in tasks)
    )
    if not same:
        raise DataError(
            f"{root} holds a complete set of another source, other options or another version:"
            " choose another out= or remove it"
        )
    print(f"{root} is complete already: {sum(shard.count for shard in index.shards)} pictures")
    discard(root / NOTES, below=root)
    return True


def make_shards(
    root: Path, tasks: list[ShardTask], options: PreparationOptions
) -> tuple[dict[Path, ShardNote], Speed]:
    """The note of every shard: those that are there, and those that are made now."""
    started = time.perf_counter()
    notes = {task.path: note for task in tasks if (note := finished(task))}
    drop_strangers(root, notes)
    missing = [task for task in tasks if task.path not in notes]
    sizes = {task.path.name: len(task.entries) for task in tasks}
    num_made = sum(len(task.entries) for task in missing)
    if notes:
        print(f"{root}: resumes after {len(notes)} shards that are there already")
    made, total = [], sum(sizes.values())
    with tqdm(total=total, initial=total - num_made, desc=root.name, unit="picture") as bar:
        for note in over_processes(make_shard, missing, num_workers=options.num_workers):
            notes[root / note.shard.file] = note
            made.append(note)
            bar.update(sizes[note.shard.file])
    seconds = time.perf_counter() - started
    return notes, Speed(pictures=num_made, seconds=seconds, cpu_seconds=sum(note.seconds for note in made))


def drop_strangers(root: Path, kept: dict[Path, ShardNote]) -> None:
    """Removes what another plan, or damage, left of earlier shards."""
    paths = [root / note.name.removesuffix(".json") for note in (root / NOTES).glob("*.json")]
    if strangers := [path for path in paths if path not in kept]:
        print(f"{root}: made anew, as source, options or bytes have changed: {len(strangers)} shards")
    for path in strangers:
        with suppress(FileNotFoundError):
            discard(path)
        discard(note_path(path), below=root)


def print_summary(root: Path, report: dict) -> None:
    """What a person wants to know at the end."""
    written, speed = report["written"], report["speed"]
    splits = ", ".join(f"{number} {name}" for name, number in written["splits"].items())
    print(f"{root}: {written['pictures']} pictures ({splits}), {written['captions']} captions")
    for title in ("pictures_left_out", "captions_left_out", "healed"):
        for reason, number in report["counts"][title].items():
            print(f"  {title.replace('_', ' ')}: {number} {reason}")
    for kind, number in report["converted"].items():
        print(f"  pictures {kind}: {number}")
    print(f"  captions of more than 77 CLIP tokens: {report['captions_over_77_tokens']}")
    for title in ("in_no_split", "same_bytes", "same_bytes_across_splits"):
        if report[title]:
            print(f"  {title.replace('_', ' ')}: {len(report[title])}")
    print(f"  split sha256 {report['split_sha256']}")
    print(
        f"  {speed['seconds']:.1f} s, {speed['pictures_per_second']:.0f} pictures/s,"
        f" {speed['pictures_per_core_second']:.0f} a core; {speed['peak_memory_mb']:.0f} MB a process at most"
    )
    print(f"  all of it in {root / 'report.json'}")
