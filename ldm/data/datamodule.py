"""Pictures with captions for the stages that look at pixels: CLIP and the autoencoder."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset, default_collate

from ldm.data import keyed
from ldm.data.augment import flip
from ldm.data.buckets import BucketOrder, Buckets
from ldm.data.crops import Crop, centre
from ldm.data.index import DataError
from ldm.data.pictures import PictureDataset
from ldm.data.stream import Order, PictureBatch, Positions, StreamDataset, StreamLoader


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

    def __init__(
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
        return DataLoader(_Centres(self.val, self._caption), batch_size=self.batch_size, collate_fn=_collate)

    def _sample(self, number: int, position: int) -> dict:
        height, width = self.shapes[number]
        crop = partial(self.crop, aspect=width / height, seed=self.seed, position=position)
        image = self.train.part(number, crop, height=height, width=width)
        text = self._caption(self.train, number, position)
        if self.flip and flip(seed=self.seed, position=position, text=text):
            image = image.flip(-1)
        return {"image": image, "text": text, "position": position, "index": number}

    def _caption(self, pictures: PictureDataset, number: int, position: int) -> str:
        texts = pictures.captions(number)
        return texts[keyed.integer(len(texts), seed=self.seed, position=position, stream="caption")]


class _Centres(Dataset[dict]):
    """The centres of the pictures to validate on, from first to last, each with always the same caption."""

    def __init__(self, pictures: PictureDataset, caption: Callable[[PictureDataset, int, int], str]) -> None:
        self.pictures, self.caption = pictures, caption

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> dict:
        image, text = self.pictures.image(number), self.caption(self.pictures, number, 0)
        return {"image": image, "text": text, "position": 0, "index": number}


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
