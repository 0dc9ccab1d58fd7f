"""The index of a set of shards: their samples, the place of each in its tar, and the hashes of all."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

from ldm import UserError
from ldm.data import DataError
from ldm.io.fields import Fields
from ldm.io.reading import hash_file, is_plain_name, read_json
from ldm.io.writing import write

FORMAT = 1
FILE_NAME = "shards.json"
TAR_BLOCK = 512  # bytes; a member's header is the block before its data
CHECKED_AT_START = 2**28  # bytes: about what is hashed in a second


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: its identity, and for each sample its key and what is known of its two members."""

    file: str
    split: str
    bytes: int
    sha256: str
    keys: list[str]
    images: list[tuple[int, int]]  # offset and size of each sample's picture, in bytes
    records: list[tuple[int, int]]  # the same of its json
    # crc32 of both; none in sets that an earlier version prepared
    checksums: list[tuple[int, int]] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.keys)

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
        members = chain(shard.images, shard.records)
        if any(offset < TAR_BLOCK or offset + size > shard.bytes for offset, size in members):
            raise UserError("a sample lies outside its shard")
        return shard


def _pairs(pairs: list) -> list[tuple[int, int]]:
    found = [(first, second) for first, second in pairs]
    if not all(type(number) is int and number >= 0 for pair in found for number in pair):
        raise UserError("offsets, sizes and checksums must be whole numbers of at least 0")
    return found


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
            if document["format"] != FORMAT:
                raise DataError(
                    f"{path} has format {document['format']}, this version reads {FORMAT}: {remedy}"
                )
            shards = tuple(Shard.parse(entry) for entry in document["shards"])
            index = cls(root=root, name=str(document["name"]), shards=shards, remedy=remedy)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a readable shard index ({error!r}): {remedy}") from error
        for key, number in Counter(key for shard in shards for key in shard.keys).items():
            if number > 1:  # its picture would count twice, or be in two splits
                raise DataError(f"{path} has {number} samples {key!r}: {remedy}")
        for shard in shards:  # sizes alone: hashing a large set would take minutes at every start
            file = root / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DataError(f"shard {file} {found}, its index says {shard.bytes}: {remedy}")
        return index

    def save(self, *, below: Path | None = None) -> None:
        """Writes `shards.json`, last of all: it never names a shard that isn't whole."""
        entries = [asdict(shard) for shard in self.shards]
        text = json.dumps({"format": FORMAT, "name": self.name, "shards": entries}, separators=(",", ":"))
        write(self.root / FILE_NAME, text, below=below)

    def verify(self) -> None:
        """Raises DataError for a shard whose sha256 is not the index's; reads every byte."""
        for shard in self.shards:
            path = self.root / shard.file
            if hash_file(path) != shard.sha256:
                raise DataError(f"shard {path} differs from what was prepared (sha256): {self.remedy}")

    def verify_if_small(self) -> bool:
        """As `verify`, for at most `CHECKED_AT_START` bytes; returns whether they were read."""
        is_small = sum(shard.bytes for shard in self.shards) <= CHECKED_AT_START
        if is_small:
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
