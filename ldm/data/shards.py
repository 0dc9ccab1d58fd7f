"""The one layout of our shards: WebDataset tars in which a sample is a picture and a json of the same key."""

import hashlib
import io
import json
import logging
import os
import tarfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ldm import UserError
from ldm.data import DataError
from ldm.data.decode import RULES, EncodedPicture, centre_square
from ldm.data.index import TAR_BLOCK, Shard, ShardIndex
from ldm.io.reading import hash_file, parse_json
from ldm.io.writing import writing

if TYPE_CHECKING:
    import torch

IMAGE, RECORD = 0, 1  # the halves of a sample
MAX_OPEN = 256  # shards that a reader holds open: systems allow a process 1,024 files, or fewer
Result = TypeVar("Result")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture with its captions, as stored."""

    key: str  # unique in its data set; the stem of both members
    image: bytes  # an encoded picture (PNG, JPEG or WebP), byte for byte
    extension: str  # the picture's, without the dot
    texts: list[str]  # its captions
    comment_nos: list[int]  # the number of each caption, as Flickr30k has them
    metadata: dict[str, object] = field(default_factory=dict)  # whatever else the set knows of the picture


def write_shard(samples: Iterable[Sample], path: Path, *, split: str, below: Path | None = None) -> Shard:
    """Writes one tar: there whole under its name, or not at all (`below` as of `ldm.io.writing`)."""
    import webdataset  # imports torch, seconds that reading an index does without

    # a fixed time stamp: the same samples give the same bytes
    with writing(path, below=below) as stream, webdataset.TarWriter(stream, encoder=False, mtime=0) as tar:
        for sample in samples:
            own = {"key": sample.key, "texts": sample.texts, "comment_nos": sample.comment_nos}
            record = json.dumps(own | sample.metadata, ensure_ascii=False).encode()
            tar.write({"__key__": sample.key, sample.extension: sample.image, "json": record})
    return scan_shard(path, split=split)


def scan_shard(path: Path, *, split: str) -> Shard:
    """Index entry of a tar. Raises DataError: it is cut or compressed, or not pairs of picture and json."""
    spans: dict[str, dict[int, tuple[int, int]]] = {}
    for member in tar_members(path):
        key, _, extension = member.name.partition(".")
        half = RECORD if extension == "json" else IMAGE
        if not is_plain(member) or half in spans.setdefault(key, {}):
            raise DataError(f"shard {path}: member {member.name!r} is no picture or json of its own sample")
        spans[key][half] = (member.offset_data, member.size)
    if halves := [key for key, span in spans.items() if len(span) != 2]:
        raise DataError(f"shard {path}: sample {halves[0]!r} lacks its picture or its json")
    images, records = ([span[half] for span in spans.values()] for half in (IMAGE, RECORD))
    with path.open("rb") as stream:
        sums = [zlib.crc32(os.pread(stream.fileno(), size, at)) for at, size in (*images, *records)]
    return Shard(
        file=path.name,
        split=split,
        bytes=path.stat().st_size,
        sha256=hash_file(path),
        keys=list(spans),
        images=images,
        records=records,
        checksums=[*zip(sums[: len(spans)], sums[len(spans) :], strict=True)],
    )


def tar_members(path: Path) -> Iterator[tarfile.TarInfo]:
    """Every member of a tar, of whatever kind; nothing is extracted.

    Raises DataError: not an uncompressed tar or, after the members before that place, a cut or damaged one.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            yield from tar
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise DataError(f"shard {path} is no whole, uncompressed tar ({error}): make it anew") from error
    with path.open("rb") as stream:  # tarfile takes a cut between two members for the end
        stream.seek(end)
        if stream.read(TAR_BLOCK) != bytes(TAR_BLOCK):
            raise DataError(f"shard {path} is cut or damaged at byte {end}: make it anew")


def is_plain(member: tarfile.TarInfo) -> bool:
    """Whether a member is bytes that lie in the tar itself: no link, device, folder or file with holes."""
    return member.isreg() and not member.issparse()


class ShardReader:
    """Samples of one split by number: (encoded picture, record) in any order, read where the index says.

    Where the index has checksums, a bit that has changed since is refused, with the sample's name.
    A reader may be pickled or forked into loader processes: each opens its own files.
    """

    def __init__(self, index: ShardIndex, *, split: str) -> None:
        self.root, self.remedy = index.root, index.remedy
        self.shards = index.split(split)
        old = replace(index, shards=tuple(each for each in self.shards if not len(each.checksums)))
        if not old.verify_if_small():
            log.warning("%s was made by an earlier version, without checksums: verify it", index.root)
        self.ends = [*accumulate(shard.count for shard in self.shards)]
        self._files: dict[str, io.BufferedReader] = {}

    def __len__(self) -> int:
        return self.ends[-1]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_files": {}}

    def keys(self) -> list[str]:
        """The key of each sample."""
        return [shard.key(row) for shard in self.shards for row in range(shard.count)]

    def image(self, number: int) -> bytes:
        """The encoded picture. Raises DataError: the bytes are not the ones that were prepared."""
        return self._read(number, IMAGE)

    def record(self, number: int) -> dict:
        """The sample's json. Raises DataError: the bytes are not this sample's record."""
        shard, row = self._place(number)
        data = self._read(number, RECORD)
        try:
            record = parse_json(data, name="record")
        except ValueError:
            record = None
        if not is_record(record, key=shard.key(row)):
            raise self.damaged(number, "has a damaged record")
        return record

    def damaged(self, number: int, what: str) -> DataError:
        """The refusal of a sample, by its shard and key, with the remedy."""
        shard, row = self._place(number)
        return DataError(f"shard {self.root / shard.file}: sample {shard.key(row)!r} {what}: {self.remedy}")

    def _place(self, number: int) -> tuple[Shard, int]:
        """The shard of a sample, and its row there. Raises IndexError: there is none."""
        number = range(len(self))[number]
        at = bisect_right(self.ends, number)
        return self.shards[at], number - self.ends[at] + self.shards[at].count

    def _read(self, number: int, half: int) -> bytes:
        """The bytes of a member, if the tar's own header names the sample and no bit of them has changed."""
        shard, row = self._place(number)
        offset, size = (shard.images, shard.records)[half][row]
        if not shard.holds(offset, size):
            raise self.damaged(number, "is not where the index says")
        try:
            # not seek and read: forked loader processes share the place in a file that was open before
            block = os.pread(self._open(shard).fileno(), TAR_BLOCK + size, offset - TAR_BLOCK)
        except OSError as error:
            raise DataError(f"shard {self.root / shard.file} can't be read ({error.strerror})") from error
        # a header's name holds 100 bytes of ASCII; the full name, where it is another, lies before it
        name = f"{shard.key(row)}.".encode("ascii", "replace")[:100]
        if len(block) != TAR_BLOCK + size or not block.startswith(name):
            raise self.damaged(number, "is not where the index says")
        data = block[TAR_BLOCK:]
        if len(shard.checksums) and zlib.crc32(data) != shard.checksums[row][half]:
            raise self.damaged(number, "differs from what was prepared (crc32)")
        return data

    def _open(self, shard: Shard) -> io.BufferedReader:
        if shard.file not in self._files:
            if len(self._files) >= MAX_OPEN:
                self._files.pop(next(iter(self._files))).close()  # the one that was opened first
            self._files[shard.file] = (self.root / shard.file).open("rb")
        return self._files[shard.file]


def is_record(record: object, *, key: str) -> bool:
    """Whether a json is the record of a sample: its key and its captions, each a text with a number."""
    match record:
        case {"key": own, "texts": [_, *_] as texts, "comment_nos": list(numbers)} if own == key:
            are_texts = all(isinstance(text, str) and text.strip() for text in texts)
            return are_texts and len(texts) == len(numbers)
    return False


class PictureDataset:
    """Pictures of one split at one size, by number.

    Args:
        root: folder with `shards.json`.
        split: "train", "val" or whatever the set has.
        size: side in pixels; the largest centred square is resized to it (bicubic, antialiased).
        cache: folder for what is computed of the pictures; None: beside them.

    Attributes:
        transform: identity of what `image` does to a stored picture, for caches.
        data_sha256: identity of the data set, whatever the split and the size.
    """

    def __init__(self, root: str, *, split: str, size: int, cache: str | None = None) -> None:
        self.index, self.cache = ShardIndex.load(root), Path(root if cache is None else cache)
        self.reader, self.split, self.size = ShardReader(self.index, split=split), split, size
        self.transform, self.data_sha256 = f"centre {size} px v{RULES}", self.index.sha256

    def __len__(self) -> int:
        return len(self.reader)

    @cached_property
    def sha256(self) -> str:
        """Identity of the pixels that `image` gives, and of their order."""
        parts = (self.index.sha256, self.split, self.transform)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def keys(self) -> list[str]:
        """The key of each picture."""
        return self.reader.keys()

    def image(self, number: int) -> "torch.Tensor":
        """The centre of a picture: uint8, 3 h w. Raises DataError: the stored bytes are no whole picture."""
        return self.decoded(number, lambda picture: centre_square(picture, self.size))

    def images(self, numbers: Iterable[int] | None = None) -> "torch.Tensor":
        """The pictures with these numbers, or all, in memory: uint8, n 3 h w."""
        import torch

        return torch.stack([self.image(each) for each in (range(len(self)) if numbers is None else numbers)])

    def batches(self, size: int, *, numbers: Sequence[int]) -> "torch.utils.data.DataLoader[torch.Tensor]":
        """The pictures with these numbers, so many at a time: uint8, b 3 h w."""
        import torch

        return torch.utils.data.DataLoader(list(numbers), batch_size=size, collate_fn=self.images)  # type: ignore[arg-type]

    def captions(self, number: int) -> list[str]:
        """The captions of a picture."""
        return self.reader.record(number)["texts"]

    def texts(self) -> list[list[str]]:
        """The captions of each picture."""
        return [self.captions(number) for number in range(len(self))]

    def aspects(self) -> list[float]:
        """Width over height of each picture, from its header."""
        return [self.decoded(number, lambda each: each.width / each.height) for number in range(len(self))]

    def decoded(self, number: int, use: Callable[[EncodedPicture], Result]) -> Result:
        """What `use` returns for a picture. Raises DataError: the sample whose bytes are no whole picture."""
        data = self.reader.image(number)
        try:
            return use(EncodedPicture(data))
        except UserError as error:
            raise self.reader.damaged(number, f"can't be decoded ({error})") from error


def captions(root: str, *, split: str = "train") -> list[str]:
    """Every caption of a split, in the order of the shards. Raises DataError: no such split, or damage."""
    reader = ShardReader(ShardIndex.load(root), split=split)
    return [text for number in range(len(reader)) for text in reader.record(number)["texts"]]
