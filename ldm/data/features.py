"""Features of pictures beside their latents or codes, by a frozen network: computed once and stored."""

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ldm.codec import Codec
from ldm.data.latents import LatentData
from ldm.data.shards import PictureDataset
from ldm.data.stored import Recipe, of_pictures
from ldm.data.stream import LatentBatch

ENCODED_AT_ONCE = 16  # pictures


class Embedder(Protocol):
    """A frozen network that makes features of pictures."""

    @property
    def shape(self) -> Sequence[int]:
        """The shape of a feature: (dim,) or (channels, rows, columns)."""

    def to(self, device: Any) -> Any:
        """Moves the network in place; returns self."""

    def embed_images(self, images: Tensor) -> Tensor:
        """The feature of each picture, (b, *shape), whatever its batch."""

    def image_fingerprint(self) -> str:
        """sha256 of everything that decides it."""


def stored_embeddings(pictures: PictureDataset, embedder: Embedder, *, mirrored: bool) -> Recipe:
    """Features of each picture, float16: a row of `embedder.shape`, and if `mirrored` one of the mirrored."""
    made_by = {"image_encoder": embedder.image_fingerprint()}
    rows = {"kind": "embeddings", "dtype": np.float16, "count": prod(embedder.shape)}
    return of_pictures(
        pictures, embedder.embed_images, made_by, chunk=ENCODED_AT_ONCE, mirrored=mirrored, **rows
    )


class FeaturedLatents(LatentData):
    """Batches of latents, context and features of the pictures, all encoded once and kept on the disk.

    Args:
        embedder: what makes the features: that of the stage that is trained; None: batches have none.
        others: see `LatentData`.
    """

    def __init__(self, *, codec: Codec, embedder: Embedder | None = None, **others: Any) -> None:
        super().__init__(codec=codec, **others)
        self.embedder = embedder

    def recipes(self, split: PictureDataset, *, mirrored: bool) -> dict[str, Recipe]:
        """How moments, captions and features of a split are computed; only a training reads features."""
        own = super().recipes(split, mirrored=mirrored)
        if self.embedder is None or split.split != "train":
            return own
        return own | {"embedding": stored_embeddings(split, self.embedder, mirrored=mirrored)}

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> LatentBatch:
        """The denoiser's batch with its features."""
        return with_embedding(super().on_after_batch_transfer(batch, dataloader_idx), batch.get("embedding"))


def with_embedding(batch: LatentBatch, embedding: Tensor | None) -> LatentBatch:
    """The batch with features of its pictures, if there are any, in float32."""
    return batch if embedding is None else {**batch, "embedding": embedding.float()}
