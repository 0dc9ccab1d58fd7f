"""Captioned pictures of one split, decoded."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ldm import UserError
from ldm.data.crops import Box, centre, cut
from ldm.data.decode import RULES, EncodedPicture
from ldm.data.index import DataError, ShardIndex
from ldm.data.shards import ShardReader


class Picture(TypedDict):
    image: Tensor  # uint8, 3 h w
    texts: list[str]
    key: str


class PictureDataset(Dataset[Picture]):
    """Pictures of one split at one size, by number.

    Args:
        root: folder with `shards.json`.
        split: "train", "val" or whatever the set has.
        size: side in pixels; the largest centred square is resized to it (bicubic, antialiased).
        cache: folder for what is computed of the pictures; None: beside them.

    Attributes:
        transform: identity of what `image` does to a stored picture, for caches.
    """

    def __init__(self, root: str, *, split: str, size: int, cache: str | None = None) -> None:
        self.index = ShardIndex.load(root)
        self.cache = Path(root if cache is None else cache)
        self.reader = ShardReader(self.index, split=split)
        self.split = split
        self.size = size
        self.transform = f"centre {size} px v{RULES}"

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> Picture:
        record = self.reader.record(number)
        return Picture(image=self.image(number), texts=record["texts"], key=record["key"])

    def image(self, number: int) -> Tensor:
        """The centre of a picture: uint8, 3 h w.

        Raises:
            DataError: the stored bytes are no whole picture.
        """
        return self.part(number, partial(centre, aspect=1.0), height=self.size, width=self.size)

    def part(self, number: int, crop: Callable[[int, int], Box], *, height: int, width: int) -> Tensor:
        """The box that `crop` chooses from a picture's height and width, at another: uint8, 3 h w.

        Raises:
            DataError: as `image`.
        """
        try:
            picture = EncodedPicture(self.reader.image(number))
            return cut(picture, crop(picture.height, picture.width), height=height, width=width)
        except DataError:
            raise  # of the shard, which it names
        except UserError as error:
            raise self._damaged(number, error) from error

    def images(self) -> Tensor:
        """All pictures: uint8, n 3 h w. For sets that fit in memory."""
        return torch.stack([self.image(number) for number in range(len(self))])

    def batches(self, size: int, *, numbers: Sequence[int]) -> DataLoader[Tensor]:
        """The pictures with these numbers, so many at a time: uint8, b 3 h w."""
        return DataLoader(Subset(_Images(self), numbers), batch_size=size)

    def captions(self, number: int) -> list[str]:
        """The captions of a picture."""
        return self.reader.record(number)["texts"]

    def texts(self) -> list[list[str]]:
        """The captions of each picture."""
        return [self.captions(number) for number in range(len(self))]

    def aspects(self) -> list[float]:
        """Width over height of each picture, from its header."""
        return [self._aspect(number) for number in range(len(self))]

    def _aspect(self, number: int) -> float:
        try:
            picture = EncodedPicture(self.reader.image(number))
        except UserError as error:
            raise self._damaged(number, error) from error
        return picture.width / picture.height

    def _damaged(self, number: int, error: UserError) -> DataError:
        key = self.reader.keys()[number]
        return DataError(f"data set {self.index.root}: picture {key!r} can't be decoded ({error})")


class _Images(Dataset[Tensor]):
    """The pictures of a set without their captions."""

    def __init__(self, pictures: PictureDataset) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> Tensor:
        return self.pictures.image(number)
