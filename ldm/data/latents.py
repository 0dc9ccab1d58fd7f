"""What a denoiser is trained on: latents and text states, from the disk or encoded at every step.

Both data modules here give the same batches to the bit at the same seed; the first is the fast one.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm import UserError
from ldm.codec import Codec
from ldm.data import keyed
from ldm.data.augment import flip
from ldm.data.crops import centre
from ldm.data.datamodule import PictureData, stream_loader
from ldm.data.moments import moments_recipe
from ldm.data.pictures import PictureDataset
from ldm.data.stored import Recipe, StoredArrays
from ldm.data.stream import LatentBatch, StreamLoader
from ldm.data.streaming import StreamingPictureData
from ldm.data.texts import Texts, stored_states

TextsOf = Callable[[PictureDataset, Codec], Texts]


class StoredSplit:
    """Moments and captions of one split, by picture.

    Args:
        moments: of the pictures.
        captions: of each picture.
        texts: of each picture, one row a caption.
        flips: whether pictures are mirrored, where their caption allows it.
        seed: key of the choice of captions and of flips.
    """

    def __init__(
        self,
        moments: StoredArrays,
        captions: list[list[str]],
        texts: StoredArrays,
        *,
        flips: bool,
        seed: int,
    ) -> None:
        self.moments, self.captions, self.texts = moments, captions, texts
        self.flips, self.seed = flips, seed

    def __len__(self) -> int:
        return len(self.moments)

    def row(self, number: int, position: int) -> dict[str, Any]:
        """Picture `number` as it is met at a position of the stream."""
        own = self.captions[number]
        choice = keyed.integer(len(own), seed=self.seed, position=position, stream="caption")
        mirrored = self.flips and flip(seed=self.seed, position=position, text=own[choice])
        return {
            "moments": self.moments.read(number)[int(mirrored)],
            "text": self.texts.read(number)[choice],
            "position": position,
            "index": number,
        }


class LatentData(LightningDataModule):
    """Batches of latents and text states, computed once by the codec of the stage that is trained.

    Args:
        pictures: the data set; its batch size, seed, workers and flips are used.
        texts: how captions are kept: `stored_states` or `stored_tokens`.

    Raises:
        UserError: pictures that are streamed, or cut otherwise than to centred squares.
    """

    def __init__(self, *, pictures: PictureData, texts: TextsOf = stored_states) -> None:
        super().__init__()
        if not isinstance(pictures, PictureData):
            raise UserError(
                f"data={type(pictures).__name__}: latents are stored of prepared sets only; prepare it, "
                "or train on ldm.data.latents.EncodedPictures, which encodes every batch"
            )
        if pictures.crop is not centre or pictures.buckets is not None:
            raise UserError(
                "data.crop and data.buckets: latents are stored of centred squares only; leave both as they "
                "are, or train on ldm.data.latents.EncodedPictures, which encodes every batch"
            )
        self.pictures, self.texts = pictures, texts
        self.batch_size, self.seed, self.num_workers = (
            pictures.batch_size,
            pictures.seed,
            pictures.num_workers,
        )
        self.train: StoredSplit | None = None
        self.val: StoredSplit | None = None
        self.context: Callable[[Tensor], Tensor] = Tensor.float  # rows of captions -> their states

    def prepare_data(self) -> None:
        """On one process of a machine, before any other reads the files."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        train, *val = self._recipes(self.trainer.lightning_module.codec)
        self.train, self.context = self._split(*train), train[1].context
        self.val = self._split(*val[0]) if val else None

    def missing_bytes(self, codec: Codec) -> dict[str, int]:
        """About how many bytes of latents and of texts `setup` would compute and write below `data.cache`."""
        recipes = self._recipes(codec)
        return {
            "latents": sum(moments.missing_bytes for moments, _ in recipes),
            "texts": sum(texts.recipe.missing_bytes for _, texts in recipes),
        }

    def _recipes(self, codec: Codec) -> list[tuple[Recipe, Texts]]:
        """How the moments and the texts of the training split, and of that for validation, are computed."""
        flips = {self.pictures.train: self.pictures.flip, self.pictures.val: False}
        return [
            (moments_recipe(split, codec, mirrored=flip), self.texts(split, codec))
            for split, flip in flips.items()
            if split is not None
        ]

    def _split(self, moments: Recipe, texts: Texts) -> StoredSplit:
        captions, flips = moments.pictures.texts(), moments.origin["mirrored"]
        return StoredSplit(moments.arrays(), captions, texts.rows, flips=flips, seed=self.seed)

    def train_dataloader(self) -> StreamLoader:
        assert self.train is not None
        return stream_loader(
            self,
            self.train.row,
            size=len(self.train),
            collate=collate,
            timeout=self.pictures.worker_timeout,
        )

    def val_dataloader(self) -> DataLoader[Any] | list:
        if self.val is None:
            return []
        return DataLoader(_InOrder(self.val), batch_size=self.batch_size, collate_fn=collate)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> LatentBatch:
        return latent_batch(batch["moments"], self.context(batch["text"]), batch)


class EncodedPictures(LightningDataModule):
    """The same batches, with the codec at work in every step: for sets too large to store, and to compare.

    Args:
        pictures: the data set, prepared or streamed.
    """

    def __init__(self, *, pictures: PictureData | StreamingPictureData) -> None:
        super().__init__()
        self.pictures = pictures

    def train_dataloader(self) -> StreamLoader:
        self.pictures.trainer = self.trainer
        return self.pictures.train_dataloader()

    def val_dataloader(self) -> DataLoader[Any] | list:
        return self.pictures.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> LatentBatch:
        codec = self.trainer.lightning_module.codec
        states = codec.states(codec.tokenizer.encode(batch["text"]))
        return latent_batch(codec.moments(batch["image"]), states.float(), batch)


def latent_batch(moments: Tensor, context: Tensor, batch: dict[str, Any]) -> LatentBatch:
    """A batch for the denoiser's stage from moments (b 2 c h w) and text states."""
    mean, logvar = moments.float().unbind(1)
    return LatentBatch(
        mean=mean.contiguous(),
        std=torch.exp(0.5 * logvar),
        context=context,
        position=batch["position"],
        index=batch["index"],
    )


class _InOrder(Dataset[dict[str, Any]]):
    """A split from its first picture to its last."""

    def __init__(self, split: StoredSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.split.row(number, number)


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Rows of a `StoredSplit` as one batch."""
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
