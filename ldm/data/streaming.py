"""Sets too large to index, such as LAION: tars from disk or the net, drawn with replacement.

Every loader process of every rank reads shards of its own drawing, so that all ranks have equal numbers of
batches whatever the shards hold. Positions count on after a resume, but shards are drawn anew: a resumed
training is not the uninterrupted one to the bit.
"""

import logging
from collections.abc import Iterator
from functools import partial
from random import Random
from typing import Any

from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm import UserError
from ldm.data import keyed
from ldm.data.augment import flip
from ldm.data.captions import UnusableCaption, sample_captions, usable_caption
from ldm.data.crops import Crop, centre, cut
from ldm.data.datamodule import PictureData, loader_over
from ldm.data.decode import EncodedPicture
from ldm.data.index import DataError
from ldm.data.stream import StreamLoader
from ldm.data.tars import PICTURES, read_samples, shard_urls

FEW = 10  # damaged samples or shards that are passed over whatever their share
log = logging.getLogger(__name__)


class StreamingPictureData(LightningDataModule):
    """Tars of (picture, txt or json) samples -> batches of pictures, each with one of its captions.

    Args:
        root: path or URL of the tars, with ranges in braces, or a .txt file that lists them.
        size: side in pixels.
        batch_size: samples a rank and step.
        seed: key of the shards drawn, the order, the caption choice, crops and flips.
        num_workers: loader processes.
        worker_timeout: seconds that a batch may take to come from a loader process.
        shuffle: encoded samples that a process holds to draw the next one from.
        damaged_share: of damaged samples and shards among the samples of a process, above which it stops.
        crop: what is seen of a picture.
        flip: mirror half of the pictures, never one whose caption names a side.
        validation: a prepared set to validate on.
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
        shuffle: int = 1000,
        damaged_share: float = 0.001,
        crop: Crop = centre,
        flip: bool = False,
        validation: PictureData | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.worker_timeout, self.validation = worker_timeout, validation
        self.samples = StreamedSamples(
            shard_urls(root), seed=seed, shuffle=shuffle, damaged_share=damaged_share
        )
        self.pictures = StreamedPictures(self.samples, size=size, seed=seed, crop=crop, flip=flip)

    def train_dataloader(self) -> StreamLoader:
        return self.stream(self.trainer)

    def stream(self, trainer: Trainer) -> StreamLoader:
        """Loader over the whole training that a trainer is set up for."""
        log.warning("streaming %d shards: not exactly resumable", len(self.samples.urls))
        return loader_over(self, trainer, self.pictures)

    def val_dataloader(self) -> DataLoader[Any] | list:
        return self.validation.val_dataloader() if self.validation else []


class StreamedSamples:
    """The endless samples of one process, encoded; damaged ones are counted, logged and passed over.

    Args:
        urls: of the tars.
        seed, shuffle, damaged_share: as of `StreamingPictureData`.
    """

    def __init__(self, urls: list[str], *, seed: int, shuffle: int, damaged_share: float) -> None:
        self.urls, self.seed, self.shuffle, self.damaged_share = urls, seed, shuffle, damaged_share
        self.seen = self.damaged = 0

    def start(self, position: int) -> Iterator[dict]:
        """Samples whose draws are keyed by the first position that the process is asked for.

        Raises:
            DataError: too many damaged shards.
        """
        draw = Random(keyed.key(self.seed, position, "shards"))
        held: list[dict] = []
        for sample in self._drawn(draw):
            place = draw.randrange(len(held) + 1)
            held.append(sample)
            if len(held) > self.shuffle:
                held[place], held[-1] = held[-1], held[place]
                yield held.pop()

    def _drawn(self, draw: Random) -> Iterator[dict]:
        while True:
            url, before = draw.choice(self.urls), self.seen
            try:
                for sample in read_samples(url):
                    self.seen += 1
                    yield sample
                if self.seen == before:
                    self.pass_over(f"shard {url} holds no samples")
            except DataError as error:
                self.pass_over(str(error))

    def pass_over(self, sentence: str) -> None:
        """Counts and logs what is damaged.

        Raises:
            DataError: it is too much.
        """
        self.damaged += 1
        counts = f"{self.damaged} damaged among {self.seen} samples"
        log.warning("passed over: %s (%s of this process)", sentence, counts)
        if self.damaged > max(FEW, self.damaged_share * self.seen):
            raise DataError(
                f"{counts}, more than data.damaged_share={self.damaged_share:g} and more than {FEW}; "
                f"the last: {sentence}"
            )


class StreamedPictures(Dataset[dict]):
    """At any position the next sample of the process that asks."""

    def __init__(self, samples: StreamedSamples, *, size: int, seed: int, crop: Crop, flip: bool) -> None:
        self.samples, self.size, self.seed, self.crop, self.flip = samples, size, seed, crop, flip
        self._stream: Iterator[dict] | None = None

    def __getitem__(self, position: int) -> dict:
        if self._stream is None:
            self._stream = self.samples.start(position)
        for sample in self._stream:
            try:
                return self._row(sample, position)
            except UserError as error:
                self.samples.pass_over(f"sample {sample['__key__']!r} of {sample['__url__']}: {error}")
        raise AssertionError("the stream has no end")

    def _row(self, sample: dict, position: int) -> dict:
        texts = captions(sample)
        text = texts[keyed.integer(len(texts), seed=self.seed, position=position, stream="caption")]
        image = self._image(picture(sample), position)
        if self.flip and flip(seed=self.seed, position=position, text=text):
            image = image.flip(-1)
        index = keyed.key(0, 0, f"{sample['__url__']}/{sample['__key__']}") >> 1
        return {"image": image, "captions": text, "position": position, "index": index}

    def _image(self, data: bytes, position: int) -> Tensor:
        encoded = EncodedPicture(data)
        crop = partial(self.crop, aspect=1.0, seed=self.seed, position=position)
        box = crop(encoded.height, encoded.width)
        return cut(encoded, box, height=self.size, width=self.size)


def picture(sample: dict) -> bytes:
    """The encoded picture of a sample.

    Raises:
        UserError: it has none, or several.
    """
    found = [sample[extension] for extension in PICTURES if extension in sample]
    if len(found) != 1:
        raise UserError(f"it has {len(found)} pictures")
    return found[0]


def captions(sample: dict) -> list[str]:
    """The captions of a sample that can be used, as `ldm/data/captions.py` finds and stores them.

    Raises:
        UserError: it has none.
    """
    kept, reason = {}, "it has no caption"
    for number, text in sample_captions(sample):
        try:
            kept[number, usable_caption(text).text] = None  # twice under one number is once
        except UnusableCaption as unusable:
            reason = f"it has no usable caption: {unusable}"
    texts = [text for _, text in sorted(kept, key=lambda caption: caption[0])]
    if not texts:
        raise UserError(reason)
    return texts
