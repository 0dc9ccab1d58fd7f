"""Moments of a set's latents, as shards beside it: computed once for one autoencoder and one set of pictures.

The layout is that of the pictures (`shards.py`), with the moments as `.npy` in the picture's place. A folder
is named by what decides its contents and says so in `made_from.json`: the autoencoder's weights, the
pictures' bytes, how they were cut, and whether each was encoded mirrored, too. Moments are stored, not drawn
latents, so the latent is redrawn every epoch.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ldm.codec import PICTURE_CHUNK, Codec
from ldm.data.index import FILE_NAME, DataError, Shard, ShardIndex
from ldm.data.pictures import PictureDataset
from ldm.data.shards import Sample, ShardReader, scan_shard, write_shard

ORIGIN = "made_from.json"
SAMPLES_PER_SHARD = 1024
HALF_INFINITY = 0x7C00  # infinity's bits in float16; NaN's are above, all other numbers' below


class Moments:
    """Stored moments of one split, by picture.

    Attributes:
        shape: of one picture's: (orientations, 2, c, h, w); the two are mean and log-variance.
    """

    def __init__(self, folder: Path, *, origin: dict[str, Any]) -> None:
        self.folder = folder
        check_origin(folder, origin)
        self.reader = ShardReader(ShardIndex.load(folder), split=origin["split"])
        self.shape = np.load(io.BytesIO(self.reader.image(0)), allow_pickle=False).shape
        self._values = int(np.prod(self.shape))

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, number: int, *, mirrored: bool = False) -> np.ndarray:
        """float16, 2 c h w.

        Raises:
            DataError: the stored bytes are not this many numbers, or hold NaN or Inf.
        """
        data = self.reader.image(number)
        header = len(data) - 2 * self._values
        if header <= 0 or not data.startswith(b"\x93NUMPY"):
            raise self._damaged(number, f"is not an array of shape {self.shape}")
        moments = np.frombuffer(data, dtype=np.float16, offset=header).reshape(self.shape)[int(mirrored)]
        if not is_finite(moments):
            raise self._damaged(number, "holds NaN or Inf")
        return moments

    def _damaged(self, number: int, what: str) -> DataError:
        shard, row = self.reader.places[number]
        return DataError(
            f"latents {self.folder / shard.file}: sample {shard.keys[row]!r} {what}; "
            f"remove {self.folder} and they are computed again"
        )


def is_finite(values: np.ndarray) -> bool:
    """Whether float16 numbers are neither NaN nor Inf, by their bits: four times faster than numpy's test."""
    return bool((values.view(np.uint16) & 0x7FFF).max() < HALF_INFINITY)


def origin_of(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> dict[str, Any]:
    """All that decides the moments of a split."""
    return {
        "autoencoder": codec.picture_fingerprint(),
        "pictures": pictures.index.sha256,
        "split": pictures.split,
        "transform": pictures.transform,
        "mirrored": mirrored,
    }


def moments_folder(pictures: PictureDataset, origin: dict[str, Any]) -> Path:
    """Where the moments of a split lie."""
    name = hashlib.sha256(json.dumps(origin).encode()).hexdigest()[:16]
    return pictures.index.root / "latents" / f"{pictures.split}-{pictures.size}px-{name}"


def write_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Writes down what the moments in a folder are made from."""
    (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def check_origin(folder: Path, origin: dict[str, Any]) -> None:
    """Raises DataError if a folder's moments were made from something else."""
    try:
        found = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        differing = [name for name in origin if found.get(name) != origin[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / ORIGIN} can't be read ({error}): make the latents with data_prep.latents"
        ) from error
    if differing:
        lines = "; ".join(f"{name} {found.get(name)} instead of {origin[name]}" for name in differing)
        raise DataError(f"the latents in {folder} were made from something else: {lines}")


def stored_moments(pictures: PictureDataset, codec: Codec, *, mirrored: bool) -> Moments:
    """The moments of a split from the disk, or computed now and put there.

    A computation that was stopped goes on after its last whole shard.
    """
    origin = origin_of(pictures, codec, mirrored=mirrored)
    folder = moments_folder(pictures, origin)
    if not (folder / FILE_NAME).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_origin(folder, origin)
        shards = tuple(_write(pictures, codec, folder, mirrored=mirrored))
        ShardIndex(root=folder, name="moments", shards=shards).save()
    return Moments(folder, origin=origin)


def _write(pictures: PictureDataset, codec: Codec, folder: Path, *, mirrored: bool) -> Iterator[Shard]:
    with tqdm(total=len(pictures), desc=f"latents of {pictures.split}", unit="picture") as bar:
        for number, first in enumerate(range(0, len(pictures), SAMPLES_PER_SHARD)):
            path = folder / f"{pictures.split}-{number:06d}.tar"
            numbers = range(first, min(first + SAMPLES_PER_SHARD, len(pictures)))
            if path.is_file():
                bar.update(len(numbers))
                yield scan_shard(path, split=pictures.split)
            else:
                samples = _samples(pictures, codec, numbers, mirrored=mirrored, bar=bar)
                yield write_shard(samples, path, split=pictures.split)


def _samples(
    pictures: PictureDataset, codec: Codec, numbers: range, *, mirrored: bool, bar: tqdm
) -> Iterator[Sample]:
    for start in range(0, len(numbers), PICTURE_CHUNK):
        chunk = numbers[start : start + PICTURE_CHUNK]
        images = torch.stack([pictures.image(number) for number in chunk])
        orientations = [images, images.flip(-1)] if mirrored else [images]
        moments = torch.stack([codec.moments(each) for each in orientations], dim=1).cpu().numpy()
        for number, array in zip(chunk, moments, strict=True):
            yield _sample(pictures.reader.record(number), array)
        bar.update(len(chunk))


def _sample(record: dict[str, Any], array: np.ndarray) -> Sample:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return Sample(
        key=record["key"],
        image=buffer.getvalue(),
        extension="npy",
        texts=record["texts"],
        comment_nos=record["comment_nos"],
    )
