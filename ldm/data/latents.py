"""What a denoiser is trained on: moments of latents and the context of captions, computed once and stored.

`EncodedPictures` of `streaming.py` stores nothing, and can give the same batches to the bit. Of a caption
either its text states are stored (`context_length * width * 2` bytes), or its tokens, encoded at each step.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm import UserError
from ldm.codec import Codec
from ldm.data.augment import VALIDATION_SEED, choose, flip
from ldm.data.datamodule import PictureData
from ldm.data.decode import centre
from ldm.data.shards import PictureDataset
from ldm.data.stored import Recipe, StoredArrays, stored_moments, stored_states
from ldm.data.stream import LatentBatch, StreamDataset, StreamLoader


@dataclass(eq=False)
class StoredSplit(Dataset[dict[str, Any]]):
    """What is stored of one split, by picture."""

    arrays: Mapping[str, StoredArrays]  # by name in a batch: of each picture, and mirrored if `flips`
    encoded: StoredArrays | None  # tokens or context of each picture's captions
    flips: bool  # whether pictures are mirrored, where their caption allows it
    seed: int  # key of the choice of captions and of flips
    choose: Callable[..., int] = choose  # the row of `encoded` that a position has, see `Recipe`

    @property
    def kind(self) -> str:
        """What `encoded` holds: "tokens" or "context"."""
        return "context" if self.encoded.dtype.kind == "f" else "tokens"

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.sample(number, number)  # for validation: a constant position gives constant captions

    def sample(self, number: int, position: int) -> dict[str, Any]:
        """The sample of a position: the picture's arrays, and `tokens` or `context` of one caption."""
        encoded, key = self.encoded.read(number), {"seed": self.seed, "position": position}
        choice = self.choose(encoded, **key)
        mirrored = self.flips and flip(**key, text=self.encoded.reader.record(number)["texts"][choice])
        rows = self.rows(number, mirrored=mirrored)
        return rows | {self.kind: encoded[choice], "position": position, "index": number}

    def rows(self, number: int, *, mirrored: bool) -> dict[str, np.ndarray]:
        """The rows of a picture or of its mirror image, by their names."""
        return {name: each.read(number)[int(mirrored)] for name, each in self.arrays.items()}


class LatentData(LightningDataModule):
    """Batches of latents and context, encoded once and kept on the disk.

    Args:
        pictures: the data set; its batch size, seed, workers and flips are used.
        codec: what encodes them: that of the stage that is trained.
        texts: how captions are kept: `stored_states`, `stored_tokens` or `ldm.data.joined.JoinedCaptions`.

    Raises UserError: pictures that are streamed, or cut otherwise than to centred squares.
    """

    def __init__(
        self,
        *,
        pictures: PictureData,
        codec: Codec,
        texts: Callable[[PictureDataset, Codec], Recipe] = stored_states,
    ) -> None:
        super().__init__()
        wrong = ""
        if not isinstance(pictures, PictureData):
            wrong = f"data={type(pictures).__name__}: latents are stored of prepared sets only; prepare it"
        elif pictures.crop is not centre or pictures.buckets is not None:
            wrong = "data.crop and data.buckets: latents are stored of centred squares: keep the defaults"
        if wrong:
            raise UserError(f"{wrong}, or use ldm.data.streaming.EncodedPictures, which encodes every batch")
        self.pictures, self.codec, self.texts = pictures, codec, texts
        self.train: StoredSplit | None = None
        self.val: StoredSplit | None = None

    def prepare_data(self) -> None:
        """Encodes on local rank 0 alone, while Lightning lets the other ranks of the machine wait."""
        self.setup("fit")

    def setup(self, stage: str) -> None:
        """Opens the stored splits; what is missing is computed."""
        seeds = (self.pictures.seed, VALIDATION_SEED)
        splits = [self.split(*pair) for pair in zip(self._recipes(), seeds, strict=False)]
        self.train, self.val = [*splits, None][:2]

    def split(self, recipes: Mapping[str, Recipe], seed: int) -> Any:
        """One split: its arrays from the disk, or computed now."""
        arrays = {name: recipe.arrays() for name, recipe in recipes.items()}
        own = {"flips": recipes["moments"].origin["mirrored"], "choose": recipes["texts"].choose}
        return StoredSplit(encoded=arrays.pop("texts"), arrays=arrays, seed=seed, **own)

    def missing_bytes(self) -> dict[str, int]:
        """About how many bytes of latents and of texts `setup` would compute and write below `data.cache`."""
        found: dict[str, int] = {}
        for recipe in (each for own in self._recipes() for each in own.values()):
            found[recipe.kind] = found.get(recipe.kind, 0) + recipe.missing_bytes
        return found

    def _recipes(self) -> list[dict[str, Recipe]]:
        """How everything is encoded, of the training split and of that for validation."""
        splits = [(self.pictures.train, self.pictures.flip), (self.pictures.val, False)]
        return [self.recipes(split, mirrored=flips) for split, flips in splits if split is not None]

    def recipes(self, split: PictureDataset, *, mirrored: bool) -> dict[str, Recipe]:
        """How moments and captions of a split are encoded."""
        moments = stored_moments(split, self.codec, mirrored=mirrored)
        return {"moments": moments, "texts": self.texts(split, self.codec)}

    def train_dataloader(self) -> StreamLoader:
        """Loader over the whole training."""
        assert self.train is not None
        stream = StreamDataset(self.train.sample, size=len(self.train), seed=self.pictures.seed)
        return self.pictures.loader(self.trainer, stream, collate=collate)

    def val_dataloader(self) -> DataLoader[Any] | list:
        """Each held-out picture once, always with the same caption."""
        if self.val is None:
            return []
        return DataLoader(self.val, batch_size=self.pictures.batch_size, collate_fn=collate)

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> LatentBatch:
        """The denoiser's batch; stored tokens become context here, on the device."""
        context = batch["context"] if "context" in batch else self.codec.context(batch["tokens"])
        return latent_batch(batch["moments"], context, batch)


def latent_batch(moments: Tensor, context: Tensor, batch: dict[str, Any]) -> LatentBatch:
    """A batch for the denoiser's stage from moments (b 2 c h w) and context (b n d)."""
    mean, logvar = moments.float().unbind(1)
    return LatentBatch(
        mean=mean.contiguous(),
        std=torch.exp(0.5 * logvar),
        context=context.float(),
        position=batch["position"],
        index=batch["index"],
    )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples of a split as one batch; texts as a list."""
    rows = {name: np.stack([each[name] for each in samples]) for name in samples[0]}
    return {name: x.tolist() if x.dtype.kind == "U" else torch.from_numpy(x) for name, x in rows.items()}
