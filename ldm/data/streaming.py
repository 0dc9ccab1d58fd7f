"""Sets too large to index, such as LAION: tars from disk or the net, sampled with replacement; or to encode.

Every loader process of every rank chooses its own shards, so that all ranks have equal numbers of batches
whatever the shards hold. A resumed training chooses others: it is not the uninterrupted one to the bit.
"""

import logging
from collections.abc import Iterator
from random import Random
from typing import Any

import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader, Dataset

from ldm import UserError
from ldm.codec import Codec
from ldm.data import DataError
from ldm.data.augment import Crop, sample_at
from ldm.data.datamodule import PictureData
from ldm.data.decode import EncodedPicture, centre
from ldm.data.features import Embedder, with_embedding
from ldm.data.latents import latent_batch
from ldm.data.stream import LatentBatch, StreamData, StreamLoader
from ldm.data.tars import PICTURES, UnusableCaption, read_samples, sample_captions, shard_urls, usable_caption
from ldm.randomness import keyed

FEW = 10  # damaged samples or shards that are passed over whatever their share
log = logging.getLogger(__name__)


class StreamingPictureData(StreamData):
    """Tars of (picture, txt or json) samples -> batches of pictures, each with one of its captions.

    Args:
        root: path or URL of the tars, with ranges in braces, or a .txt file that lists them.
        shuffle: encoded samples that a process holds to choose the next one from.
        damaged_share: of damaged samples and shards among the samples of a process, above which it stops.
        crop, flip: as of `PictureData`.
        validation: a prepared set to validate on.
        others: see `StreamData`; `seed` is the key of the choice of shards, too.
    """

    def __init__(
        self,
        *,
        root: str,
        shuffle: int = 1000,
        damaged_share: float = 0.001,
        crop: Crop = centre,
        flip: bool = False,
        validation: PictureData | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.validation = validation
        view = {"shape": (self.size, self.size), "seed": self.seed, "crop": crop, "flips": flip}
        self.pictures = StreamedPictures(shard_urls(root), view, shuffle=shuffle, damaged_share=damaged_share)

    def stream(self, trainer: Trainer) -> StreamLoader:
        """Loader over the whole training that a trainer is set up for."""
        log.warning("streaming %d shards: not exactly resumable", len(self.pictures.urls))
        return self.loader(trainer, self.pictures)

    def val_dataloader(self) -> DataLoader[Any] | list:
        """The batches of the prepared set, if there is one."""
        return self.validation.val_dataloader() if self.validation else []


class EncodedPictures(LightningDataModule):
    """Batches that the codec of the stage encodes in every step: for sets too large to store.

    Encoded in bfloat16 if the training computes in it, as in other libraries, and otherwise in float32. With
    ``exact`` always in float32: the batches are then those of `LatentData` to the bit.
    """

    def __init__(
        self, *, pictures: StreamData, codec: Codec, embedder: Embedder | None = None, exact: bool = False
    ) -> None:
        super().__init__()
        self.pictures, self.codec, self.embedder, self.exact = pictures, codec, embedder, exact

    def train_dataloader(self) -> StreamLoader:
        """Loader over the whole training."""
        return self.pictures.stream(self.trainer)

    def val_dataloader(self) -> DataLoader[Any] | list:
        """Those of the pictures."""
        return self.pictures.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> LatentBatch:
        """The denoiser's batch."""
        half = self.trainer.precision.startswith("bf16") and not self.exact
        dtype = torch.bfloat16 if half else torch.float32
        context = self.codec.context(self.codec.tokenizer.encode(batch["captions"]), dtype)
        made = latent_batch(self.codec.moments(batch["image"], dtype), context, batch)
        # in half precision, as `FeaturedLatents` stores them
        return with_embedding(made, self.embedder and self.embedder.embed_images(batch["image"]).half())


class StreamedPictures(Dataset[dict]):
    """The next sample of this process's own order, whatever position is asked for; damaged ones are skipped.

    `view` holds the options of `sample_at`; the others are those of `StreamingPictureData`.
    """

    def __init__(self, urls: list[str], view: dict[str, Any], *, shuffle: int, damaged_share: float) -> None:
        self.urls, self.view, self.shuffle, self.damaged_share = urls, view, shuffle, damaged_share
        self.seen = self.damaged = 0
        self._stream: Iterator[dict] | None = None

    def __getitem__(self, position: int) -> dict:
        if self._stream is None:  # no two processes begin at one position, so none repeats another's order
            self._stream = self._shuffled(Random(keyed.key(self.view["seed"], position, "shards")))
        for sample in self._stream:
            url, key = sample["__url__"], sample["__key__"]
            # the picture's identity, as nothing counts them: 63 bits of a hash, which an int64 holds
            at = {"index": keyed.key(0, 0, f"{url}/{key}") >> 1, "position": position}
            try:
                texts = captions(sample)
                return sample_at(EncodedPicture(picture(sample)), texts, **at, **self.view)
            except UserError as error:
                self._pass_over(f"sample {key!r} of {url}: {error}")
        raise AssertionError("the stream has no end")

    def _shuffled(self, random: Random) -> Iterator[dict]:
        held: list[dict] = []
        for sample in self._encoded(random):
            place = random.randrange(len(held) + 1)
            held.append(sample)
            if len(held) > self.shuffle:
                held[place], held[-1] = held[-1], held[place]
                yield held.pop()

    def _encoded(self, random: Random) -> Iterator[dict]:
        while True:
            url, before = random.choice(self.urls), self.seen
            try:
                for sample in read_samples(url):
                    self.seen += 1
                    yield sample
                if self.seen == before:
                    self._pass_over(f"shard {url} holds no samples")
            except DataError as error:
                self._pass_over(str(error))

    def _pass_over(self, sentence: str) -> None:
        """Counts and logs what is damaged. Raises DataError: it is too much."""
        self.damaged += 1
        counts = f"{self.damaged} damaged among {self.seen} samples"
        log.warning("passed over: %s (%s of this process)", sentence, counts)
        if self.damaged > max(FEW, self.damaged_share * self.seen):
            raise DataError(
                f"{counts}, more than data.damaged_share={self.damaged_share:g} and more than {FEW}; "
                f"the last: {sentence}"
            )


def picture(sample: dict) -> bytes:
    """The encoded picture of a sample. Raises UserError: it has none, or several."""
    found = [sample[extension] for extension in PICTURES if extension in sample]
    if len(found) != 1:
        raise UserError(f"it has {len(found)} pictures")
    return found[0]


def captions(sample: dict) -> list[str]:
    """The captions of a sample that `usable_caption` keeps. Raises UserError: it has none."""
    kept, reason = {}, "it has no caption"
    for number, text in sample_captions(sample):
        try:
            kept[number, usable_caption(text).text] = None  # twice under one number is once
        except UnusableCaption as unusable:
            reason = f"it has no usable caption: {unusable}"
    if not kept:
        raise UserError(reason)
    return [text for _, text in sorted(kept, key=lambda caption: caption[0])]
