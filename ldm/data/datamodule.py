"""Pictures with captions for the stages that look at pixels: CLIP and the autoencoder.

All are squares of one size, or each batch has the shape of a bucket: that whose shape is nearest to its own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, default_collate

from ldm import UserError
from ldm.data.augment import VALIDATION_SEED, Crop, sample_at
from ldm.data.decode import centre
from ldm.data.shards import PictureDataset
from ldm.data.stream import PictureBatch, StreamData, StreamDataset, StreamLoader
from ldm.randomness import keyed


class Buckets:
    """The `shapes` of batches, (height, width) from tall to wide, all of about the same area.

    Args:
        size: square root of the largest area, in pixels.
        multiple: of which both sides are multiples: the autoencoder's factor times the denoiser's.
        stretch: largest quotient of the sides.

    Raises UserError: no shape has such sides.
    """

    def __init__(self, *, size: int, multiple: int = 32, stretch: float = 2.0) -> None:
        sides = range(multiple, int(size * math.sqrt(stretch)) + 1, multiple)
        upright = {(side, size**2 // side // multiple * multiple) for side in sides if side >= size}
        upright = {(height, width) for height, width in upright if width and height / width <= stretch}
        lying = {(width, height) for height, width in upright}
        self.shapes = sorted(upright | lying, key=lambda shape: shape[1] / shape[0])
        if not self.shapes:
            raise UserError(f"no bucket of {size=} has sides that are multiples of {multiple}: lower that")

    def nearest(self, aspects: Sequence[float]) -> np.ndarray:
        """The bucket of each picture by its width over height: int64, an index of `shapes`."""
        own = np.log([width / height for height, width in self.shapes])
        return np.abs(np.log(aspects)[:, None] - own).argmin(axis=1)


@dataclass(frozen=True)
class BucketOrder:
    """Order of an epoch in which each run of `batch` positions lies in one bucket.

    Every picture comes; the last run of a bucket is filled with pictures that its first begins with.
    """

    bucket: np.ndarray  # of each picture
    batch: int  # samples of all ranks per step

    @property
    def size(self) -> int:
        """Positions an epoch."""
        return sum(-(-int(count) // self.batch) for count in np.bincount(self.bucket)) * self.batch

    def __call__(self, seed: int, epoch: int, size: int) -> np.ndarray:
        assert size == self.size
        order = keyed.permutation(seed, epoch, len(self.bucket))
        # batches are shuffled after they are filled: else an epoch would go through bucket after bucket
        own = [order[self.bucket[order] == bucket] for bucket in np.unique(self.bucket)]
        runs = np.concatenate([np.resize(each, (-(-len(each) // self.batch), self.batch)) for each in own])
        return runs[keyed.permutation(seed, epoch, len(runs), stream="runs")].reshape(-1)


class PictureData(StreamData):
    """Shards -> batches of pictures, each with one of its captions.

    Args:
        root: folder with `shards.json`.
        val_split: name of the split to validate on; a set without it is not validated on.
        crop: what is seen of a picture to train on; of one to validate on it is always the centre.
        flip: mirror half of the pictures to train on, never one whose caption names a side.
        buckets: shapes of the batches to train on; None: squares.
        cache: folder for the latents and text states of a denoiser's training; None: beside the data.
        others: see `StreamData`.

    Attributes:
        train, val: the splits; `val` is None where there is none.

    Raises DataError: no such data set, or a damaged one.
    """

    def __init__(
        self,
        *,
        root: str,
        val_split: str = "val",
        crop: Crop = centre,
        flip: bool = False,
        buckets: Buckets | None = None,
        cache: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        size = self.size
        self.root, self.crop, self.flip, self.buckets = root, crop, flip, buckets
        self.train = PictureDataset(root, split="train", size=size, cache=cache)
        validates = val_split in self.train.index.splits
        self.val = PictureDataset(root, split=val_split, size=size, cache=cache) if validates else None
        self.shapes = np.broadcast_to(size, (len(self.train), 2))  # (height, width) of each to train on

    def stream(self, trainer: Trainer) -> StreamLoader:
        """Loader over the whole training that a trainer is set up for."""
        size, order = len(self.train), keyed.permutation
        if self.buckets is not None:
            nearest = self.buckets.nearest(self.train.aspects())
            self.shapes = np.array(self.buckets.shapes)[nearest]
            order = BucketOrder(nearest, self.batch_size * trainer.world_size)
            size = order.size
        return self.loader(trainer, StreamDataset(self._sample, size=size, seed=self.seed, order=order))

    def val_dataloader(self) -> DataLoader[Any] | list:
        """Batches to validate on: centres, each picture always with the same caption."""
        if self.val is None:
            return []
        return DataLoader(range(len(self.val)), batch_size=self.batch_size, collate_fn=self._centres)  # type: ignore[arg-type]

    def _sample(self, number: int, position: int) -> dict:
        shape = tuple(self.shapes[number].tolist())
        view = {"shape": shape, "crop": self.crop, "flips": self.flip, "seed": self.seed}
        return self._seen(self.train, number, position, **view)

    def _centres(self, numbers: list[int]) -> PictureBatch:
        assert self.val is not None
        view = {"shape": (self.size, self.size), "crop": centre, "flips": False, "seed": VALIDATION_SEED}
        return default_collate([self._seen(self.val, number, 0, **view) for number in numbers])

    def _seen(self, split: PictureDataset, number: int, position: int, **view: Any) -> dict:
        captions = split.captions(number)
        place = {"index": number, "position": position}
        return split.decoded(number, lambda picture: sample_at(picture, captions, **place, **view))
