"""Pictures with captions for the stages that look at pixels: CLIP and the autoencoder.

All are squares of one size, or each batch has the shape of a bucket: that whose shape is nearest to its own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm import UserError
from ldm.data import keyed
from ldm.data.augment import flip
from ldm.data.crops import Crop, centre
from ldm.data.index import DataError
from ldm.data.pictures import PictureDataset
from ldm.data.stream import Order, PictureBatch, Positions, StreamDataset, StreamLoader


class Buckets:
    """Shapes of about the same area.

    Args:
        size: square root of the largest area, in pixels.
        multiple: of which both sides are multiples: the autoencoder's factor times the denoiser's.
        stretch: largest quotient of the sides.

    Attributes:
        shapes: (height, width) of each bucket, from tall to wide.

    Raises:
        UserError: no shape has such sides.
    """

    def __init__(self, *, size: int, multiple: int = 32, stretch: float = 2.0) -> None:
        sides = range(multiple, int(size * math.sqrt(stretch)) + 1, multiple)
        upright = {(side, size**2 // side // multiple * multiple) for side in sides if side >= size}
        upright = {(height, width) for height, width in upright if width and height / width <= stretch}
        self.shapes = sorted(
            upright | {shape[::-1] for shape in upright}, key=lambda shape: shape[1] / shape[0]
        )
        if not self.shapes:
            raise UserError(f"no bucket of {size=} has sides that are multiples of {multiple}: lower that")

    def nearest(self, aspects: Sequence[float]) -> np.ndarray:
        """The bucket of each picture by its width over height: int64, an index of `shapes`."""
        own = np.log([width / height for height, width in self.shapes])
        return np.abs(np.log(aspects)[:, None] - own).argmin(axis=1)


@dataclass(frozen=True)
class BucketOrder:
    """Order of an epoch in which each run of `batch` positions lies in one bucket.

    Every picture comes; the last run of a bucket is filled up with those that its first began with.

    Attributes:
        bucket: of each picture.
        batch: samples of all ranks a step.
    """

    bucket: np.ndarray
    batch: int

    @property
    def size(self) -> int:
        """Positions an epoch."""
        return sum(-(-int(count) // self.batch) for count in np.bincount(self.bucket)) * self.batch

    def __call__(self, seed: int, epoch: int, size: int) -> np.ndarray:
        assert size == self.size
        order = keyed.permutation(seed, epoch, len(self.bucket))
        sorted_by_bucket = [order[self.bucket[order] == bucket] for bucket in np.unique(self.bucket)]
        runs = np.concatenate([self._runs(own) for own in sorted_by_bucket])
        return runs[keyed.permutation(seed, epoch, len(runs), stream="runs")].reshape(-1)

    def _runs(self, own: np.ndarray) -> np.ndarray:
        return np.resize(own, (-(-len(own) // self.batch), self.batch))


class PictureData(LightningDataModule):
    """Shards -> batches of pictures, each with one of its captions.

    Args:
        root: folder with `shards.json`.
        size: side in pixels.
        batch_size: samples a rank and step.
        seed: key of the order, the caption choice, crops and flips.
        num_workers: loader processes; the samples don't depend on it.
        worker_timeout: seconds that a batch may take to come from a loader process.
        train_split, val_split: names of the splits; a set without a `val_split` is not validated on.
        cache: folder for the latents and text states of a denoiser's training; None: beside the data.
        crop: what is seen of a picture to train on; of one to validate on it is always the centre.
        flip: mirror half of the pictures to train on, never one whose caption names a side.
        buckets: shapes of the pictures to train on; without them all are squares of `size`.
    """

    def __init__(  # one argument an option of `data`, as a config and a command line name them
        self,
        *,
        root: str,
        size: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        worker_timeout: float = 60.0,
        train_split: str = "train",
        val_split: str = "val",
        crop: Crop = centre,
        flip: bool = False,
        buckets: Buckets | None = None,
        cache: str | None = None,
    ) -> None:
        super().__init__()
        self.root, self.size, self.batch_size, self.seed = root, size, batch_size, seed
        self.num_workers, self.worker_timeout = num_workers, worker_timeout
        self.crop, self.flip, self.buckets = crop, flip, buckets
        self.train = PictureDataset(root, split=train_split, size=size, cache=cache)
        validates = val_split in self.train.index.splits
        self.val = PictureDataset(root, split=val_split, size=size, cache=cache) if validates else None
        self.shapes = [(size, size)] * len(self.train)  # height and width of each picture to train on

    def train_dataloader(self) -> StreamLoader:
        return self.stream(self.trainer)

    def stream(self, trainer: Trainer) -> StreamLoader:
        """Loader over the whole training that a trainer is set up for."""
        if self.buckets is None:
            return stream_loader(self, trainer, self._sample, size=len(self.train))
        nearest = self.buckets.nearest(self.train.aspects())
        self.shapes = [self.buckets.shapes[bucket] for bucket in nearest]
        order = BucketOrder(nearest, self.batch_size * trainer.world_size)
        return stream_loader(self, trainer, self._sample, size=order.size, order=order)

    def val_dataloader(self) -> DataLoader[Any] | list:
        if self.val is None:
            return []
        return DataLoader(range(len(self.val)), batch_size=self.batch_size, collate_fn=self._centres)  # type: ignore[arg-type]

    def _sample(self, number: int, position: int) -> dict:
        height, width = self.shapes[number]
        crop = partial(self.crop, aspect=width / height, seed=self.seed, position=position)
        image = self.train.part(number, crop, height=height, width=width)
        text = self._caption(self.train, number, position)
        if self.flip and flip(seed=self.seed, position=position, text=text):
            image = image.flip(-1)
        return {"image": image, "captions": text, "position": position, "index": number}

    def _centres(self, numbers: list[int]) -> PictureBatch:
        """A batch to validate on: centres, each picture always with the same caption."""
        assert self.val is not None
        return _collate(
            [
                {
                    "image": self.val.image(number),
                    "captions": self._caption(self.val, number, 0),
                    "position": 0,
                    "index": number,
                }
                for number in numbers
            ]
        )

    def _caption(self, pictures: PictureDataset, number: int, position: int) -> str:
        texts = pictures.captions(number)
        return texts[keyed.integer(len(texts), seed=self.seed, position=position, stream="caption")]


def stream_loader(
    data: Any,
    trainer: Trainer,
    make: Callable[[int, int], Any],
    *,
    size: int,
    order: Order = keyed.permutation,
    collate: Callable | None = None,
) -> StreamLoader:
    """Loader over the whole training that a trainer is set up for.

    Args:
        data: whose batch size, seed, workers and timeout are used.
        make: from a sample's number and its position to the sample.
        size: positions an epoch.

    Raises:
        DataError: fewer samples than all ranks take in one step.
    """
    dataset = StreamDataset(make, size=size, seed=data.seed, order=order)
    loader = loader_over(data, trainer, dataset, collate=collate)
    positions = loader.positions
    if size < positions.global_batch_size:
        raise DataError(
            f"the {size} samples to train on are fewer than a batch: {positions.batch_size} a rank on "
            f"{positions.world_size} ranks are {positions.global_batch_size}; lower batch_size"
        )
    return loader


def loader_over(
    data: Any, trainer: Trainer, dataset: Dataset[Any], *, collate: Callable | None = None
) -> StreamLoader:
    """Loader of this rank's positions of a dataset, by `data.num_workers` processes."""
    positions = Positions(
        batch_size=data.batch_size,
        num_batches=trainer.max_steps * trainer.accumulate_grad_batches,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    return StreamLoader(
        dataset,
        positions,
        num_workers=data.num_workers,
        patience=data.worker_timeout,
        collate_fn=collate or _collate,
        persistent_workers=data.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(rows: list[dict]) -> PictureBatch:
    return default_collate(rows)
