"""`report.json`: all that happened in a preparation, with the name of everything that was left out."""

import json
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from PIL import features

from data_prep.making import ShardNote
from data_prep.pairing import Collection
from data_prep.tally import Ledger, counts, total
from ldm.checkpoints.provenance import command, environment, git_state, published
from ldm.data import DataError
from ldm.io.reading import read_json
from ldm.io.writing import write

FILE_NAME = "report.json"


class Speed(NamedTuple):
    """Pictures handled in this run, and the time that it took: on the clock, and of the processors."""

    pictures: int
    seconds: float
    cpu_seconds: float


def describe(collection: Collection, splits: dict[str, str], notes: list[ShardNote], speed: Speed) -> dict:
    """The report of a preparation, the options aside."""
    shards = [note.shard for note in notes]
    numbers: Counter[str] = Counter()
    for shard in shards:
        numbers[shard.split] += shard.count
    captions = {entry.key: len(entry.texts) for entry in collection.entries}
    return {
        "source": {
            "forms": collection.forms,
            "pictures": collection.num_pictures,
            "captions": collection.num_captions,
        },
        "written": {
            "pictures": sum(numbers.values()),
            "captions": sum(captions[key] for shard in shards for key in shard.keys),
            "splits": dict(numbers),
            "shards": len(shards),
            "bytes": sum(shard.bytes for shard in shards),
        },
        "in_no_split": [entry.name for entry in collection.entries if entry.key not in splits],
        **ledgers(collection),
        **duplicates(notes),
        "speed": speed._asdict()
        | {
            "pictures_per_second": speed.pictures / max(speed.seconds, 1e-9),
            "pictures_per_core_second": speed.pictures / max(speed.cpu_seconds, 1e-9),
            "peak_memory_mb": peak_memory_mb(),
        },
        "command": command(),
        "code": git_state(),
        "versions": environment()
        | {name: features.version(name) for name in ("pil", "libjpeg_turbo", "zlib", "webp", "littlecms2")},
    }


def peak_memory_mb() -> float:
    """The most that this process, or any worker that has ended, has held at a time."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB here
    held = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return round(max(held) * unit / 1e6, 1)


def ledgers(collection: Collection) -> dict:
    """What was left out, healed and converted: numbers first, names after."""
    tally = collection.tally
    named = {"pictures_left_out": tally.pictures, "captions_left_out": tally.captions, "healed": tally.healed}
    return {
        "counts": {title: counts(ledger) for title, ledger in named.items()},
        "converted": dict(sorted(tally.converted.items())),
        "captions_over_77_tokens": tally.long_captions,
        **named,
    }


def duplicates(notes: list[ShardNote]) -> dict[str, list[list[str]]]:
    """Keys of pictures whose files are the same byte for byte, and of those in more than one split."""
    groups: dict[str, dict[str, str]] = {}  # hash -> split by key
    for note in notes:
        for key in note.shard.keys:
            groups.setdefault(note.hashes[key], {})[key] = note.shard.split
    same = [group for group in groups.values() if len(group) > 1]
    across = [group for group in same if len(set(group.values())) > 1]
    return {"same_bytes": list(map(list, same)), "same_bytes_across_splits": list(map(list, across))}


def check_left_out(root: Path, collection: Collection, *, limit: float, left: int, report: dict) -> None:
    """Writes the report and stops if no picture is left, or more than `limit` of anything is left out.

    Args:
        left: number of pictures that are left.

    Raises DataError: with the number, the most frequent reason, an example and the place of the names.
    """
    for thing, ledger, number in (
        ("pictures", collection.tally.pictures, collection.num_pictures),
        ("captions", collection.tally.captions, collection.num_captions),
    ):
        if total(ledger) > (limit * number if left else 0):
            write_report(root, ledgers(collection) | report)
            reason = next(iter(counts(ledger)))
            most = f"{total(ledger)} of {number} {thing} are left out, most as {reason!r} ({example(ledger)})"
            names = f"{root / FILE_NAME} names each: mend them"
            if not left:
                raise DataError(f"{most}, and no picture with captions is left; {names}")
            raise DataError(
                f"{most}, more than max_skip_share={limit:g} allows; {names}, or set"
                f" max_skip_share={total(ledger) / number + 0.0005:.3f}"
            )


def example(ledger: Ledger) -> str:
    """The first name under the most frequent reason; one of each side where captions and pictures miss."""
    captions, pictures = ledger.get("captions without a picture"), ledger.get("picture without captions")
    if captions and pictures:
        return f"the captions name {captions[0]}, the folder has {pictures[0]}"
    return ledger[next(iter(counts(ledger)))][0]


def write_report(root: Path, report: dict) -> None:
    """Puts the report beside the shards."""
    text = json.dumps(published(report), ensure_ascii=False, indent=1)
    write(root / FILE_NAME, text.encode("utf-8", "backslashreplace"))


def read_report(root: Path) -> dict:
    """The report of a set; empty if there is none that can be read."""
    try:
        report = read_json(root / FILE_NAME)
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}
