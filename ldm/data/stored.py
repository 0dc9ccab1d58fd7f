"""Outputs of frozen networks for a split, as shards beside it: computed once, checked at every read.

A shard holds an array, as `.npy`, in the place of each picture. A folder's name is a hash of what decides the
arrays, which `made_from.json` states. Beside each finished shard stands its sha256: a stopped computation
resumes after the whole shards, and only a damaged one is computed again.
"""

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm import UserError
from ldm.codec import Codec
from ldm.data import DataError
from ldm.data.augment import choose
from ldm.data.index import FILE_NAME, Shard, ShardIndex
from ldm.data.shards import PictureDataset, Sample, ShardReader, scan_shard, write_shard
from ldm.io.fields import Fields
from ldm.io.reading import hash_file, parse_array, read_json
from ldm.io.writing import make_folder, sweep, write

ORIGIN = "made_from.json"
SAMPLES_PER_SHARD = 1024  # what a stopped computation loses at most
SAMPLE = 3 * 2**10  # bytes: about what a shard holds of a picture beside its array: tar headers and captions
MAGIC, LENGTH_AT, HEADER_AT = b"\x93NUMPY\x01\x00", 8, 10  # an npy file of version 1 begins with these
HALF_INFINITY = 0x7C00  # infinity's bits in float16; NaN's are above, all other numbers' below
CHUNK = 64  # pictures whose captions are encoded at once
COUNTED = 64  # pictures whose captions are counted to estimate the number of all


class StoredArrays:
    """One array for each picture of a split, in a folder of shards: rows, all of one `shape` and `dtype`.

    Raises DataError: no whole set of shards, or one that was made from something else than `origin`.
    """

    def __init__(self, folder: Path, *, origin: Mapping[str, Any]) -> None:
        self.folder, remedy = folder, f"remove {folder} and it is computed again"
        try:
            found = Fields.of(read_json(folder / ORIGIN), name="it").values
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / ORIGIN} can't be read ({error}): {remedy}") from error
        if differing := [name for name in origin if found.get(name) != origin[name]]:
            lines = "; ".join(f"{name} {found.get(name)} instead of {origin[name]}" for name in differing)
            raise DataError(f"{folder} was made from something else: {lines}")
        self.reader = ShardReader(ShardIndex.load(folder, remedy=remedy), split=origin["split"])
        try:
            first = parse_array(self.reader.image(0), name="it")
        except UserError as error:
            raise self.reader.damaged(0, f"can't be read ({error})") from error
        if not first.size:
            raise self.reader.damaged(0, "holds no numbers")
        self.shape, self.dtype = first.shape[1:], first.dtype

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, number: int) -> np.ndarray:
        """The rows of a picture. Raises DataError: other bytes than were computed, or NaN or Inf in them."""
        data = self.reader.image(number)
        # at every step and sample: numpy's own reader of npy takes several times as long
        start = HEADER_AT + int.from_bytes(data[LENGTH_AT:HEADER_AT], "little")
        row = self.dtype.itemsize * prod(self.shape)  # bytes
        if not data.startswith(MAGIC) or start >= len(data) or (len(data) - start) % row:
            raise self.reader.damaged(number, f"is not an array of rows of shape {self.shape}")
        rows = np.frombuffer(data, dtype=self.dtype, offset=start).reshape(-1, *self.shape)
        if self.dtype == np.float16 and not is_finite(rows):
            raise self.reader.damaged(number, "holds NaN or Inf")
        return rows


def is_finite(values: np.ndarray) -> bool:
    """Whether float16 numbers are neither NaN nor Inf, by their bits: four times faster than numpy's test."""
    return bool((values.view(np.uint16) & 0x7FFF).max() < HALF_INFINITY)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An array to compute from each picture of a split, and the folder that stores the arrays."""

    pictures: PictureDataset
    encode: Callable[[range], Iterable[np.ndarray]]  # numbers of pictures -> an array for each
    chunk: int  # how many pictures `encode` is given at once
    kind: str  # what the arrays are called, and the folder below `pictures.cache` that holds them
    name: str  # part of the folder's name, for its readers
    origin: Mapping[str, Any]  # everything that decides the arrays
    bytes_each: int  # about what the arrays of one picture take on the disk
    texts: Callable[[int], list[str]] | None = None  # of a picture's rows; None: its captions
    choose: Callable[..., int] = choose  # (rows, seed=, position=) -> the row that a position has

    @property
    def folder(self) -> Path:
        """Where the arrays are kept: `<cache>/<kind>/<split>-<name>-<hash of the origin>`."""
        digest = hashlib.sha256(json.dumps(self.origin).encode()).hexdigest()[:16]
        return self.pictures.cache / self.kind / f"{self.pictures.split}-{self.name}-{digest}"

    @property
    def missing_bytes(self) -> int:
        """About how much is written by `arrays`; 0 where the arrays are there already."""
        return 0 if (self.folder / FILE_NAME).is_file() else len(self.pictures) * (SAMPLE + self.bytes_each)

    def arrays(self) -> StoredArrays:
        """The arrays from the disk, or computed now and kept. Raises DataError: it has another origin."""
        folder, below, count = self.folder, self.pictures.cache, len(self.pictures)
        if not self._is_whole():
            # shared: another training may be computing the same arrays now
            sweep(make_folder(folder, below=below), below=below, shared=True)
            write(folder / ORIGIN, json.dumps(self.origin, indent=1) + "\n", below=below)
            title = f"{self.name if self.kind == 'texts' else self.kind} of {self.pictures.split}"
            with tqdm(total=count, desc=title, unit="picture") as bar:
                starts = range(0, count, SAMPLES_PER_SHARD)
                parts = [range(count)[start : start + SAMPLES_PER_SHARD] for start in starts]
                shards = tuple(self._shard(number, part, bar) for number, part in enumerate(parts))
            ShardIndex(root=folder, name=self.kind, shards=shards).save(below=below)
        return StoredArrays(folder, origin=self.origin)

    def _is_whole(self) -> bool:
        """Whether every array is there; a small set is hashed here, a larger one is checked as it is read."""
        if not (self.folder / FILE_NAME).is_file():
            return False
        try:
            index = ShardIndex.load(self.folder, remedy="it is computed again")
            index.verify_if_small()
        except DataError as error:
            print(error)
            return False
        return sum(shard.count for shard in index.shards) == len(self.pictures)

    def _shard(self, number: int, part: range, bar: tqdm) -> Shard:
        """The shard of these pictures: that of a stopped computation, if it is whole, or computed now."""
        split, below = self.pictures.split, self.pictures.cache
        path = self.folder / f"{split}-{number:06d}.tar"
        note = path.with_suffix(".sha256")
        if path.is_file() and note.is_file() and note.read_bytes() == hash_file(path).encode():
            shard = scan_shard(path, split=split)
        else:
            shard = write_shard(self._samples(part, bar), path, split=split, below=below)
            write(note, shard.sha256, below=below)  # last: without its note a shard is computed again
        bar.update(part.stop - bar.n)
        return shard

    def _samples(self, numbers: range, bar: tqdm) -> Iterator[Sample]:
        for start in range(0, len(numbers), self.chunk):
            part = numbers[start : start + self.chunk]
            for number, array in zip(part, self.encode(part), strict=True):
                buffer, record = io.BytesIO(), self.pictures.reader.record(number)
                # version 1: its header is the one that `StoredArrays.read` knows
                np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
                own = {name: record[name] for name in ("key", "texts", "comment_nos")}
                if self.texts is not None:
                    texts = self.texts(number)
                    own |= {"texts": texts, "comment_nos": [*range(len(texts))]}
                yield Sample(image=buffer.getvalue(), extension="npy", **own)
                bar.update()


def stored_moments(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> Recipe:
    """Moments of the latents of each picture, float16; not sampled latents, which are sampled at each step.

    A row (2, c, h, w) is the mean and the log-variance; if `mirrored`, a second row is of the mirrored one.
    """
    numbers = {"kind": "latents", "dtype": np.float16, "count": 2 * prod(codec.latent_shape(pictures.size))}
    made_by, chunk = {"autoencoder": codec.picture_fingerprint()}, codec.chunk
    return of_pictures(pictures, codec.moments, made_by, chunk=chunk, mirrored=mirrored, **numbers)


def of_pictures(
    pictures: PictureDataset,
    compute: Callable[[torch.Tensor], torch.Tensor],
    made_by: Mapping[str, str],
    *,
    kind: str,
    chunk: int,
    mirrored: bool,
    dtype: Any,
    count: int,
) -> Recipe:
    """The recipe by which `compute` turns each uint8 picture into a row of `count` numbers of two bytes.

    If `mirrored`, a second row is of the mirrored picture.
    """

    def encode(numbers: range) -> np.ndarray:
        """The rows of each picture, (b, 1 or 2, ...)."""
        images = pictures.images(numbers)
        orientations = [images, images.flip(-1)] if mirrored else [images]
        rows = torch.stack([compute(each) for each in orientations], dim=1)
        return rows.cpu().numpy().astype(dtype, copy=False)

    return Recipe(
        pictures=pictures,
        encode=encode,
        chunk=chunk,
        kind=kind,
        name=f"{pictures.size}px",
        origin={
            **made_by,
            "pictures": pictures.index.sha256,
            "split": pictures.split,
            "transform": pictures.transform,
            "mirrored": mirrored,
        },
        bytes_each=(1 + mirrored) * 2 * count,
    )


def stored_states(
    pictures: PictureDataset, codec: Codec, *, texts: Callable[[int], list[str]] | None = None
) -> Recipe:
    """The context of every caption, its text states: float16, (captions, n, d) a picture.

    `texts` gives other texts than the captions of the picture with a number.
    """
    return _of_captions(
        pictures,
        texts,
        "states",
        lambda captions: codec.context(codec.tokenizer.encode(captions)).cpu().numpy(),
        {"text_encoder": codec.text_fingerprint(), "dtype": "float16"},
        bytes_each=codec.tokenizer.context_length * codec.text_encoder.width * 2,
    )


def stored_tokens(
    pictures: PictureDataset, codec: Codec, *, texts: Callable[[int], list[str]] | None = None
) -> Recipe:
    """The tokens of every caption: int32, (captions, n) a picture; `LatentData` encodes those of a batch."""
    tokenizer = hashlib.sha256("\n".join(codec.tokenizer.fingerprint()).encode()).hexdigest()
    return _of_captions(
        pictures,
        texts,
        "tokens",
        lambda captions: codec.tokenizer.encode(captions).numpy().astype(np.int32),
        {"tokenizer": tokenizer, "dtype": "int32"},
        bytes_each=codec.tokenizer.context_length * 4,
    )


def _of_captions(
    pictures: PictureDataset,
    texts: Callable[[int], list[str]] | None,
    name: str,
    encode: Callable[[Sequence[str]], np.ndarray],
    made_by: dict[str, Any],
    *,
    bytes_each: int,
) -> Recipe:
    """The recipe that applies `encode` to all texts of a picture, each of which takes `bytes_each`."""
    captions_of = texts or pictures.captions

    def encode_pictures(numbers: range) -> list[np.ndarray]:
        """The captions of all these pictures in one call, and their rows picture by picture again."""
        captions = [captions_of(number) for number in numbers]
        encoded = encode([caption for own in captions for caption in own])
        return np.split(encoded, np.cumsum([len(own) for own in captions])[:-1])

    counted = range(0, len(pictures), max(1, len(pictures) // COUNTED))
    mean = sum(len(captions_of(number)) for number in counted) / len(counted)
    return Recipe(
        pictures=pictures,
        encode=encode_pictures,
        chunk=CHUNK,
        kind="texts",
        name=name,
        origin={"captions": pictures.index.sha256, "split": pictures.split} | made_by,
        bytes_each=round(mean * bytes_each),
        texts=texts,
    )
