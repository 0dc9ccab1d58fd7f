"""Pictures with captions for the stages that look at pixels: CLIP and the autoencoder."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, default_collate

from ldm.data import keyed
from ldm.data.batch import PictureBatch
from ldm.data.pictures import PictureDataset
from ldm.data.stream import Positions, StreamDataset, StreamLoader


class PictureData(LightningDataModule):
    """Shards -> batches of pictures, each with one of its captions.

    Args:
        root: folder with `shards.json`.
        size: side in pixels.
        batch_size: samples a rank and step.
        seed: key of the order and of the caption choice.
        num_workers: loader processes; the samples don't depend on it.
        train_split, val_split: names of the splits.
    """

    def __init__(
        self,
        *,
        root: str,
        size: int,
        batch_size: int,
        seed: int = 0,
        num_workers: int = 0,
        train_split: str = "train",
        val_split: str = "val",
    ) -> None:
        super().__init__()
        self.root, self.size, self.batch_size = root, size, batch_size
        self.seed, self.num_workers = seed, num_workers
        self.train = PictureDataset(root, split=train_split, size=size)
        self.val = PictureDataset(root, split=val_split, size=size)

    def train_dataloader(self) -> StreamLoader:
        return stream_loader(self, self._sample, size=len(self.train))

    def val_dataloader(self) -> DataLoader[Any]:
        rows = [self._row(self.val, number, 0) for number in range(len(self.val))]
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=_collate)

    def _sample(self, number: int, position: int) -> dict:
        return self._row(self.train, number, position)

    def _row(self, pictures: PictureDataset, number: int, position: int) -> dict:
        picture = pictures[number]
        choice = keyed.integer(len(picture["texts"]), seed=self.seed, position=position, stream="caption")
        text = picture["texts"][choice]
        return {"image": picture["image"], "text": text, "position": position, "index": number}


def stream_loader(
    data: LightningDataModule, make: Callable[[int, int], Any], *, size: int, collate: Callable | None = None
) -> StreamLoader:
    """Loader over the whole training that `data.trainer` is set up for."""
    trainer = data.trainer
    positions = Positions(
        batch_size=data.batch_size,
        num_batches=trainer.max_steps * trainer.accumulate_grad_batches,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
    )
    return StreamLoader(
        StreamDataset(make, size=size, seed=data.seed),
        positions,
        num_workers=data.num_workers,
        collate_fn=collate or _collate,
        persistent_workers=data.num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _collate(rows: list[dict]) -> PictureBatch:
    return default_collate(rows)
