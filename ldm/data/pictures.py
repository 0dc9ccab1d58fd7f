"""Captioned pictures of one split, decoded."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldm import UserError
from ldm.data.crops import Box, centre, cut
from ldm.data.decode import RULES, EncodedPicture
from ldm.data.index import DataError, ShardIndex
from ldm.data.shards import ShardReader

Result = TypeVar("Result")


class PictureDataset:
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

        def seen(picture: EncodedPicture) -> Tensor:
            return cut(picture, crop(picture.height, picture.width), height=height, width=width)

        return self._read(number, seen)

    def images(self) -> Tensor:
        """All pictures: uint8, n 3 h w. For sets that fit in memory."""
        return self._stacked(range(len(self)))

    def _stacked(self, numbers: Iterable[int]) -> Tensor:
        return torch.stack([self.image(number) for number in numbers])

    def batches(self, size: int, *, numbers: Sequence[int]) -> DataLoader[Tensor]:
        """The pictures with these numbers, so many at a time: uint8, b 3 h w."""
        return DataLoader(list(numbers), batch_size=size, collate_fn=self._stacked)  # type: ignore[arg-type]

    def captions(self, number: int) -> list[str]:
        """The captions of a picture."""
        return self.reader.record(number)["texts"]

    def texts(self) -> list[list[str]]:
        """The captions of each picture."""
        return [self.captions(number) for number in range(len(self))]

    def aspects(self) -> list[float]:
        """Width over height of each picture, from its header."""
        return [self._read(number, lambda each: each.width / each.height) for number in range(len(self))]

    def _read(self, number: int, use: Callable[[EncodedPicture], Result]) -> Result:
        data = self.reader.image(number)
        try:
            return use(EncodedPicture(data))
        except UserError as error:
            key = self.reader.keys()[number]
            raise DataError(
                f"data set {self.index.root}: picture {key!r} can't be decoded ({error})"
            ) from error
