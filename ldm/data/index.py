"""The index of a set of shards: their samples, the place of each in its tar, and the hashes of all.

`shards.json` holds it, without the samples of a large set: these are an array in `shards.npy`, which is
mapped into memory. Opening ten million reads none of them, and processes share what was read.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np

from ldm import UserError
from ldm.data import DataError
from ldm.io.fields import Fields
from ldm.io.reading import hash_file, is_plain_name, read_json
from ldm.io.writing import write, writing

LISTED, MAPPED = 1, 2  # formats
FILE_NAME, ROWS = "shards.json", "shards.npy"
COLUMNS = ("keys", "images", "records", "checksums")  # of samples: a text, and pairs of numbers
MOST_LISTED = 2**15  # samples; each takes a kilobyte and four microseconds when the index is opened
TAR_BLOCK = 512  # bytes; a member's header is the block before its data
CHECKED_AT_START = 2**28  # bytes: about what is hashed in a second


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: its identity, and for each sample its key and what is known of its two members."""

    file: str
    split: str
    bytes: int
    sha256: str
    keys: Sequence[str | bytes]  # in UTF-8 where they are mapped; `key` gives a text
    images: Sequence[tuple[int, int]]  # offset and size of each sample's picture, in bytes
    records: Sequence[tuple[int, int]]  # the same of its json
    checksums: Sequence[tuple[int, int]] = ()  # crc32 of both; none in sets of an earlier version

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.keys)

    def key(self, row: int) -> str:
        """The key of a sample."""
        key = self.keys[row]
        return key if isinstance(key, str) else key.decode(errors="replace")

    def holds(self, offset: int, size: int) -> bool:
        """Whether a member with this place lies within the tar."""
        return TAR_BLOCK <= offset <= offset + size <= self.bytes

    @classmethod
    def parse(cls, entry: dict) -> "Shard":
        """The shard of an entry; ValueError, KeyError or TypeError where it is none or leads outside."""
        spans = {name: _pairs(entry[name]) for name in ("images", "records")}
        shard = cls(**(entry | spans | {"checksums": _pairs(entry.get("checksums", []))}))
        lists = (shard.keys, shard.images, shard.records, shard.checksums or shard.keys)
        if len({len(own) for own in lists}) > 1:
            raise UserError(f"{shard.file}: keys, images, records and checksums differ in number")
        if not all(isinstance(text, str) for text in (shard.file, shard.split, shard.sha256, *shard.keys)):
            raise UserError(f"{shard.file}: names and keys must be texts")
        if not is_plain_name(shard.file):
            raise UserError(f"shard {shard.file!r} is not a plain file name")
        if not all(shard.holds(*span) for span in chain(shard.images, shard.records)):
            raise UserError("a sample lies outside its shard")
        return shard


def _pairs(pairs: list) -> list[tuple[int, int]]:
    found = [(first, second) for first, second in pairs]
    if not all(type(number) is int and number >= 0 for pair in found for number in pair):
        raise UserError("offsets, sizes and checksums must be whole numbers of at least 0")
    return found


def _mapped(entries: list[dict], path: Path) -> Iterator[Shard]:
    """Shards whose samples are rows of an array; a row is checked when its sample is read."""
    rows, stop = np.lib.format.open_memmap(path, mode="r").view(np.ndarray), 0
    count = sum(entry["count"] for entry in entries)
    if count != len(rows) or [rows.dtype[name].base.kind for name in COLUMNS] != [*"Siii"]:
        raise UserError(f"{path} holds something else than {count} samples")
    for entry in map(dict, entries):
        start, stop = stop, stop + entry.pop("count")
        empty = Shard.parse(entry | {name: [] for name in COLUMNS})
        yield replace(empty, **{name: rows[name][start:stop] for name in COLUMNS})


def _rows(shards: Sequence[Shard]) -> np.ndarray:
    """The samples of all shards, as `_mapped` reads them."""
    keys = np.array([key.encode() for shard in shards for key in shard.keys])
    rows = np.empty(len(keys), dtype=[("keys", keys.dtype), *((name, "<i8", 2) for name in COLUMNS[1:])])
    for name in COLUMNS:
        rows[name] = keys if name == "keys" else [pair for shard in shards for pair in getattr(shard, name)]
    return rows


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All shards of a data set, in the order in which they were written."""

    root: Path  # folder that holds the shards and `shards.json`
    name: str  # of the data set
    shards: tuple[Shard, ...]
    remedy: str = "prepare the set anew"  # how damage is mended, for the sentence that names it

    @classmethod
    def load(cls, root: str | Path, *, remedy: str = remedy) -> "ShardIndex":
        """Reads `shards.json`, and checks that no key comes twice and each shard has its full size.

        Raises DataError: no index, an unreadable one, or a shard that is missing or of another size.
        """
        root = Path(root)
        path = root / FILE_NAME
        if not path.is_file():
            raise DataError(
                f"no data set at {root}: {path} is missing; prepare one with python -m data_prep.emoji, "
                "data_prep.flickr30k or data_prep.folder (--help says how)"
            )
        try:
            document = Fields.of(read_json(path), name="it").values
            entries, form = document["shards"], document["format"]
            if form not in (LISTED, MAPPED):
                raise DataError(f"{path} has format {form}, this version reads 1 and 2: {remedy}")
            shards = tuple(map(Shard.parse, entries) if form == LISTED else _mapped(entries, root / ROWS))
            index = cls(root=root, name=str(document["name"]), shards=shards, remedy=remedy)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"{path} is not a readable shard index ({error!r}): {remedy}") from error
        if form == LISTED:  # those of a mapped set were checked when it was written
            index.check_keys()
        for shard in shards:  # sizes alone: hashing a large set would take minutes at every start
            file = root / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DataError(f"shard {file} {found}, its index says {shard.bytes}: {remedy}")
        return index

    def check_keys(self) -> None:
        """Raises DataError for a key that comes twice: its picture would count twice, or be in two splits."""
        for key, number in Counter(key for shard in self.shards for key in shard.keys).items():
            if number > 1:
                raise DataError(f"{self.root / FILE_NAME} has {number} samples {key!r}: {self.remedy}")

    def save(self, *, below: Path | None = None) -> None:
        """Writes `shards.json`, last of all: it never names a shard that isn't whole."""
        form, entries = LISTED, [vars(shard) for shard in self.shards]
        if sum(shard.count for shard in self.shards) > MOST_LISTED:
            self.check_keys()
            with writing(self.root / ROWS, below=below) as stream:
                np.save(stream, _rows(self.shards))
            form, own = MAPPED, ("file", "split", "bytes", "sha256", "count")
            entries = [{name: getattr(shard, name) for name in own} for shard in self.shards]
        text = json.dumps({"format": form, "name": self.name, "shards": entries}, separators=(",", ":"))
        write(self.root / FILE_NAME, text, below=below)

    def verify(self) -> None:
        """Raises DataError for a shard whose sha256 is not the index's; reads every byte."""
        for shard in self.shards:
            path = self.root / shard.file
            if hash_file(path) != shard.sha256:
                raise DataError(f"shard {path} differs from what was prepared (sha256): {self.remedy}")

    def verify_if_small(self) -> bool:
        """As `verify`, for at most `CHECKED_AT_START` bytes; returns whether they were read."""
        if is_small := sum(shard.bytes for shard in self.shards) <= CHECKED_AT_START:
            self.verify()
        return is_small

    @property
    def splits(self) -> list[str]:
        """Names of the splits that have samples, in the order of the shards."""
        return list(dict.fromkeys(shard.split for shard in self.shards if shard.count))

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of one split. Raises DataError: no sample carries that split."""
        chosen = tuple(shard for shard in self.shards if shard.split == name and shard.count)
        if not chosen:
            known = ", ".join(self.splits) or "no samples"
            raise DataError(f"data set {self.root} has no split {name!r}; it has {known}")
        return chosen

    @cached_property
    def sha256(self) -> str:
        """Identity of the contents: equal for equal bytes in the same order, in any folder."""
        lines = [f"{shard.split} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
