"""The index beside a set of shards: what they hold, where each sample lies, and how to know they are whole."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

FORMAT = 1
FILE_NAME = "shards.json"


class DataError(ValueError):
    """Shards, index or samples that can't be used; the sentence names the file and the remedy."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One tar: its identity, and for each sample its key and the (offset, size) of its two members."""

    file: str
    split: str
    bytes: int
    sha256: str
    keys: list[str]
    images: list[tuple[int, int]]
    records: list[tuple[int, int]]

    @property
    def count(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, kw_only=True)
class ShardIndex:
    """All shards of a data set, in order.

    Attributes:
        root: folder that holds the shards and `shards.json`.
        name: the data set's name.
        shards: in the order in which they were written.
    """

    root: Path
    name: str
    shards: tuple[Shard, ...]

    @classmethod
    def load(cls, root: str | Path) -> "ShardIndex":
        """Reads `shards.json` and checks that each shard is there with its full size.

        Raises:
            DataError: no index, an unreadable one, or a shard that is missing or of another size.
        """
        root = Path(root)
        path = root / FILE_NAME
        if not path.is_file():
            raise DataError(f"no data set at {root}: {path} is missing; prepare one with python -m data_prep.<set>")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise DataError(f"{path} has format {document['format']}, this version reads {FORMAT}: prepare it anew")
            shards = tuple(_shard(entry) for entry in document["shards"])
            index = cls(root=root, name=document["name"], shards=shards)
        except DataError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not a readable shard index ({error!r}): prepare the set anew") from error
        index.check_sizes()
        return index

    def save(self) -> None:
        """Writes `shards.json`; the last act of a preparation, so an index never names a shard that isn't whole."""
        entries = [asdict(shard) for shard in self.shards]
        text = json.dumps({"format": FORMAT, "name": self.name, "shards": entries}, separators=(",", ":"))
        temporary = self.root / f".{FILE_NAME}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self.root / FILE_NAME)

    def check_sizes(self) -> None:
        """Raises DataError for a shard that is missing or cut."""
        for shard in self.shards:
            path = self.root / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes"
                raise DataError(f"shard {path} {found}, its index says {shard.bytes}: prepare the set anew")

    def verify(self) -> None:
        """Raises DataError for a shard whose sha256 is not the index's; reads every byte."""
        for shard in self.shards:
            path = self.root / shard.file
            if hash_file(path) != shard.sha256:
                raise DataError(f"shard {path} differs from what was prepared (sha256): prepare the set anew")

    def split(self, name: str) -> tuple[Shard, ...]:
        """The shards of one split.

        Raises:
            DataError: no sample carries that split.
        """
        chosen = tuple(shard for shard in self.shards if shard.split == name and shard.count)
        if not chosen:
            known = sorted({shard.split for shard in self.shards})
            raise DataError(f"data set {self.root} has no split {name!r}; it has {', '.join(known) or 'no samples'}")
        return chosen

    @cached_property
    def sha256(self) -> str:
        """Identity of the contents: equal for equal bytes in the same order, wherever they lie."""
        lines = [f"{shard.split} {shard.sha256}" for shard in self.shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shard(entry: dict) -> Shard:
    spans = {name: [(int(a), int(b)) for a, b in entry[name]] for name in ("images", "records")}
    if not len(entry["keys"]) == len(spans["images"]) == len(spans["records"]):
        raise ValueError(f"{entry['file']}: keys, images and records differ in number")
    return Shard(**(entry | spans))
