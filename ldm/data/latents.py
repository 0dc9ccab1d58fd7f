"""Latents and text states of a frozen codec, computed once and kept on disk.

The folder is named by what decides its contents: the codec's weights, the shards' bytes and the picture
size. Posterior moments are stored, not samples, so the latent is redrawn every epoch.
"""

import hashlib
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader, default_collate
from tqdm import tqdm

from ldm.codec import Codec
from ldm.data import keyed
from ldm.data.datamodule import PictureData, stream_loader
from ldm.data.pictures import PictureDataset
from ldm.data.stream import StreamLoader

NAMES = ("mean", "std", "states", "first")


@dataclass(frozen=True, kw_only=True)
class LatentArrays:
    """What a codec makes of one split, memory-mapped.

    Attributes:
        mean, std: of the posteriors in scaled units, float16, (pictures, c, h, w).
        states: text states of all captions, float16, (captions, n, d).
        first: row of each picture's first caption, and the number of captions at the end, int64, (pictures + 1,).
    """

    mean: np.ndarray
    std: np.ndarray
    states: np.ndarray
    first: np.ndarray

    @classmethod
    def open(cls, folder: Path) -> "LatentArrays":
        return cls(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in NAMES})

    def __len__(self) -> int:
        return len(self.mean)

    def row(self, number: int, *, caption: Callable[[int], int], position: int) -> dict:
        """One sample; `caption` chooses among so many captions."""
        first, stop = int(self.first[number]), int(self.first[number + 1])
        return {
            "mean": torch.from_numpy(self.mean[number].astype(np.float32)),
            "std": torch.from_numpy(self.std[number].astype(np.float32)),
            "context": torch.from_numpy(self.states[first + caption(stop - first)].astype(np.float32)),
            "position": position,
            "index": number,
        }


def cached_latents(pictures: PictureDataset, codec: Codec, *, batch_size: int = 64) -> LatentArrays:
    """Latents of a split from the disk, or computed now and put there."""
    identity = f"{codec.fingerprint()} {pictures.index.sha256} {pictures.split} {pictures.size}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = pictures.index.root / "latents" / f"{pictures.split}-{pictures.size}px-{name}"
    if not folder.exists():
        temporary = folder.with_name(f".tmp-{uuid.uuid4().hex}")
        temporary.mkdir(parents=True)
        try:
            for key, array in _compute(pictures, codec, batch_size).items():
                np.save(temporary / f"{key}.npy", array)
            temporary.rename(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return LatentArrays.open(folder)


def _compute(pictures: PictureDataset, codec: Codec, batch_size: int) -> dict[str, np.ndarray]:
    texts = pictures.texts()
    captions = [text for own in texts for text in own]
    with tqdm(total=len(pictures) + len(captions), desc=f"latents of {pictures.split}", unit="item") as bar:
        means, stds = [], []
        for numbers in _chunks(range(len(pictures)), batch_size):
            posterior = codec.encode_images(torch.stack([pictures.image(i) for i in numbers]))
            means.append(posterior.mean.half().cpu().numpy())
            stds.append(posterior.std.half().cpu().numpy())
            bar.update(len(numbers))
        states = []
        for chunk in _chunks(captions, batch_size):
            states.append(codec.encode_prompts(chunk).half().cpu().numpy())
            bar.update(len(chunk))
    first = np.cumsum([0, *(len(own) for own in texts)])
    return {"mean": np.concatenate(means), "std": np.concatenate(stds), "states": np.concatenate(states), "first": first}


def _chunks(items: Sequence, size: int) -> list[Sequence]:
    return [items[i : i + size] for i in range(0, len(items), size)]


class LatentData(LightningDataModule):
    """Batches of latents and text states for the denoiser; the codec is the stage's.

    Args:
        pictures: the data set; its batch size, seed and workers are used.
    """

    def __init__(self, *, pictures: PictureData) -> None:
        super().__init__()
        self.pictures = pictures
        self.batch_size, self.seed, self.num_workers = pictures.batch_size, pictures.seed, pictures.num_workers
        self.train: LatentArrays | None = None
        self.val: LatentArrays | None = None

    def prepare_data(self) -> None:
        """On one process of a machine, before any other reads the files."""
        codec = self.trainer.lightning_module.codec
        cached_latents(self.pictures.train, codec)
        cached_latents(self.pictures.val, codec)

    def setup(self, stage: str) -> None:
        codec = self.trainer.lightning_module.codec
        self.train, self.val = cached_latents(self.pictures.train, codec), cached_latents(self.pictures.val, codec)

    def train_dataloader(self) -> StreamLoader:
        assert self.train is not None
        return stream_loader(self, self._sample, size=len(self.train), collate=default_collate)

    def val_dataloader(self) -> DataLoader:
        assert self.val is not None
        rows = [self._row(self.val, number, number) for number in range(len(self.val))]
        return DataLoader(rows, batch_size=self.batch_size)

    def _sample(self, number: int, position: int) -> dict:
        assert self.train is not None
        return self._row(self.train, number, position)

    def _row(self, arrays: LatentArrays, number: int, position: int) -> dict:
        def choose(count: int) -> int:
            return keyed.integer(count, seed=self.seed, position=position, stream="caption")

        return arrays.row(number, caption=choose, position=position)
