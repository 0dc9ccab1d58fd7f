"""The one layout of our shards: WebDataset tars in which a sample is a picture and a json of the same key."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import webdataset

from ldm.data.index import DataError, Shard, ShardIndex, hash_file


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with its captions, as stored.

    Attributes:
        key: unique in its data set; the stem of both members.
        image: an encoded picture (PNG, JPEG or WebP), byte for byte.
        extension: the picture's, without the dot.
        texts: its captions.
        comment_nos: the number of each caption, as Flickr30k has them.
        metadata: whatever else the set knows of the picture.
    """

    key: str
    image: bytes
    extension: str
    texts: list[str]
    comment_nos: list[int]
    metadata: dict[str, object] = field(default_factory=dict)


def write_shards(
    samples: Iterable[Sample], *, root: Path, split: str, samples_per_shard: int = 1024
) -> Iterator[Shard]:
    """Writes `<split>-000000.tar` and so on, and yields each shard's index entry once it is on disk."""
    samples = iter(samples)
    number = 0
    while chunk := list(islice(samples, samples_per_shard)):
        yield _write_shard(chunk, root / f"{split}-{number:06d}.tar", split)
        number += 1


def _write_shard(samples: list[Sample], path: Path, split: str) -> Shard:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as stream:
        # a fixed time stamp: the same samples give the same bytes
        with webdataset.TarWriter(stream, encoder=False, mtime=0) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, sample.extension: sample.image, "json": _record(sample)})
    temporary.replace(path)
    return scan_shard(path, split=split)


def _record(sample: Sample) -> bytes:
    record = {"key": sample.key, "texts": sample.texts, "comment_nos": sample.comment_nos} | sample.metadata
    return json.dumps(record, ensure_ascii=False).encode()


def scan_shard(path: Path, *, split: str) -> Shard:
    """Index entry of an existing tar.

    Raises:
        DataError: a member that is not half of a (picture, json) pair.
    """
    spans: dict[str, dict[str, tuple[int, int]]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            kind = "record" if extension == "json" else "image"
            if not member.isfile() or kind in spans.setdefault(key, {}):
                raise DataError(f"shard {path}: member {member.name!r} is not a picture or json of its own sample")
            spans[key][kind] = (member.offset_data, member.size)
    halves = [key for key, span in spans.items() if len(span) != 2]
    if halves:
        raise DataError(f"shard {path}: sample {halves[0]!r} lacks its picture or its json")
    return Shard(
        file=path.name,
        split=split,
        bytes=path.stat().st_size,
        sha256=hash_file(path),
        keys=list(spans),
        images=[span["image"] for span in spans.values()],
        records=[span["record"] for span in spans.values()],
    )


class ShardReader:
    """Samples of one split by number: (encoded picture, record) in any order, read where the index says.

    Open files belong to the process that opened them, so a reader may be pickled or forked into workers.
    """

    def __init__(self, index: ShardIndex, *, split: str) -> None:
        self.root = index.root
        self.shards = index.split(split)
        self.places = [(shard, row) for shard in self.shards for row in range(shard.count)]
        self._files: dict[str, io.BufferedReader] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def keys(self) -> list[str]:
        return [shard.keys[row] for shard, row in self.places]

    def image(self, number: int) -> bytes:
        shard, row = self.places[number]
        return self._read(shard, shard.images[row])

    def record(self, number: int) -> dict:
        """The sample's json.

        Raises:
            DataError: the bytes are not this sample's record.
        """
        shard, row = self.places[number]
        try:
            record = json.loads(self._read(shard, shard.records[row]))
            if record["key"] == shard.keys[row] and record["texts"]:
                return record
        except (ValueError, KeyError, TypeError):
            pass
        raise DataError(
            f"shard {self.root / shard.file}: the record of sample {shard.keys[row]!r} is damaged; prepare the set anew"
        )

    def _read(self, shard: Shard, span: tuple[int, int]) -> bytes:
        if shard.file not in self._files:
            self._files[shard.file] = (self.root / shard.file).open("rb")
        offset, size = span
        self._files[shard.file].seek(offset)
        return self._files[shard.file].read(size)
