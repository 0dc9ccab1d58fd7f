"""Captioned pictures of one split, decoded."""

import io
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.data.index import DataError, ShardIndex
from ldm.data.shards import ShardReader

FORMATS = ("PNG", "JPEG", "WEBP")  # decided by content; nothing else is ever decoded


class Picture(TypedDict):
    image: Tensor  # uint8, 3 h w
    texts: list[str]
    key: str


class PictureDataset(Dataset[Picture]):
    """Pictures of one split at one size, by number.

    Args:
        root: folder with `shards.json`.
        split: "train", "val" or whatever the set has.
        size: side in pixels; pictures that are larger are centre-cropped and resized (bicubic, antialiased).
    """

    def __init__(self, root: str, *, split: str, size: int) -> None:
        self.index = ShardIndex.load(root)
        self.reader = ShardReader(self.index, split=split)
        self.split = split
        self.size = size

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> Picture:
        record = self.reader.record(number)
        return Picture(image=self.image(number), texts=record["texts"], key=record["key"])

    def image(self, number: int) -> Tensor:
        """uint8, 3 h w.

        Raises:
            DataError: the stored bytes are no picture.
        """
        try:
            with Image.open(io.BytesIO(self.reader.image(number)), formats=FORMATS) as picture:
                square = centre_crop(picture.convert("RGB"), self.size)
        except (OSError, ValueError, SyntaxError) as error:
            key = self.reader.keys()[number]
            raise DataError(f"data set {self.index.root}: picture {key!r} can't be decoded ({error})") from error
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()

    def images(self) -> Tensor:
        """All pictures: uint8, n 3 h w. For sets that fit in memory."""
        return torch.stack([self.image(number) for number in range(len(self))])

    def texts(self) -> list[list[str]]:
        """The captions of each picture."""
        return [self.reader.record(number)["texts"] for number in range(len(self))]


def centre_crop(picture: Image.Image, size: int) -> Image.Image:
    """The largest centred square, at `size` pixels a side."""
    if picture.size == (size, size):
        return picture
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
