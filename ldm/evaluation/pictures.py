"""Pictures that are there already: a split of a data set, or a folder of anybody's files."""

import hashlib
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import UInt8
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.data.decode import RULES, EncodedPicture, centre, cut
from ldm.data.picture_files import SUFFIXES, find_pictures
from ldm.data.shards import PictureDataset
from ldm.data.texts import read_columns

CAPTIONS = "captions.csv"
RESIZE = "bicubic, antialiased, rounded to 8 bit"  # what `fit` and the data's own resize do


class Pictures(Protocol):
    """Captioned pictures by number, all of one size.

    Attributes:
        sha256: identity of the pixels and their order.
    """

    @property
    def sha256(self) -> str: ...

    def __len__(self) -> int: ...

    def image(self, number: int) -> UInt8[Tensor, "3 h w"]: ...

    def keys(self) -> list[str]: ...

    def texts(self) -> list[list[str]]: ...


class Split:
    """A split of a data set as `Pictures`."""

    def __init__(self, pictures: PictureDataset) -> None:
        self.pictures = pictures

    @cached_property
    def sha256(self) -> str:
        parts = (self.pictures.index.sha256, self.pictures.split, self.pictures.transform)
        return hashlib.sha256("/".join(parts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.pictures)

    def image(self, number: int) -> UInt8[Tensor, "3 h w"]:
        return self.pictures.image(number)

    def keys(self) -> list[str]:
        return self.pictures.reader.keys()

    def texts(self) -> list[list[str]]:
        return self.pictures.texts()


class PictureFolder:
    """The pictures in and under a folder (`find_pictures`) as `Pictures`, in the order of their paths.

    Files that look like pictures and are passed over are named in a line. Keys are paths in the folder
    without ends. Captions are those of its `captions.csv` (columns file, a path in the folder, and caption),
    or else the files' names, with each _ read as a space.

    Args:
        path: of the folder.
        size: side in pixels that the largest centred square of each is brought to; null leaves pictures as
            they are, which then must be squares of one size.

    Attributes:
        size: side of the pictures.

    Raises:
        UserError: no folder, no pictures in it, a broken one, two with one key, or sizes that differ.
    """

    def __init__(self, path: str | Path, *, size: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}: name one that holds pictures")
        found = find_pictures(self.path)
        for sentence in found.sentences(self.path):
            rank_zero_only(print)(sentence)
        self.files = [self.path / name for name in found.pictures]
        if not self.files:
            raise UserError(f"folder {self.path} holds no picture that ends with {', '.join(SUFFIXES)}")
        self._check_keys()
        self.size = self._common_size() if size is None else size

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256(f"{self.size} px, rules {RULES}".encode())
        for file in self.files:
            digest.update(f"/{self._name(file)}/{hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.files)

    def image(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """A picture.

        Raises:
            UserError: its file is damaged.
        """
        picture = self._opened(self.files[number])
        box = centre(picture.height, picture.width, aspect=1.0)
        try:
            return cut(picture, box, height=self.size, width=self.size)
        except UserError as error:
            raise self._damaged(self.files[number], error) from error

    def keys(self) -> list[str]:
        return [self._name(file.with_suffix("")) for file in self.files]

    def texts(self) -> list[list[str]]:
        """The caption of each picture.

        Raises:
            UserError: a `captions.csv` with other columns, without a line for a file, or with several.
        """
        table = self.path / CAPTIONS
        if not table.is_file():
            return [[file.stem.replace("_", " ")] for file in self.files]
        lines = read_columns(table, ("file", "caption"))
        captions = dict(lines)
        if len(captions) < len(set(lines)):
            twice = next(file for file, text in lines if captions[file] != text)
            raise UserError(f"{table} has several captions of {twice}: keep one of them")
        names = [self._name(file) for file in self.files]
        missing = [name for name in names if name not in captions]
        if missing:
            raise UserError(
                f"{table} lacks {len(missing)} of the {len(self)} files, {missing[0]} first: add them"
            )
        return [[captions[name]] for name in names]

    def _name(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()

    def _check_keys(self) -> None:
        files: dict[Path, Path] = {}
        for file in self.files:
            twin = files.setdefault(file.with_suffix(""), file)
            if twin != file:
                raise UserError(
                    f"{twin} and {file.name} differ only in their extension: rename one, or "
                    "remove it if both show the same"
                )

    def _common_size(self) -> int:
        pictures = ((file, self._opened(file)) for file in self.files)
        sizes = {file: f"{picture.width} x {picture.height}" for file, picture in pictures}
        common, count = Counter(sizes.values()).most_common(1)[0]
        width, _, height = common.partition(" x ")
        if width == height and count == len(sizes):
            return int(height)
        odd = next((file for file, size in sizes.items() if size != common), self.files[0])
        raise UserError(
            f"{odd} has {sizes[odd]} pixels; {count} of {len(sizes)} pictures have {common}: remove it if it "
            f"is not to be measured; if all are, protocol.size=<pixels> takes the largest centred square of "
            f"each, at one size"
        )

    def _opened(self, file: Path) -> EncodedPicture:
        try:
            return EncodedPicture(file.read_bytes())
        except UserError as error:
            raise self._damaged(file, error) from error

    def _damaged(self, file: Path, error: UserError) -> UserError:
        return UserError(f"{file} can't be decoded ({' '.join(str(error).split())}): replace or remove it")


def fit(images: UInt8[Tensor, "b 3 h w"], *, size: int) -> UInt8[Tensor, "b 3 s s"]:
    """Square pictures at another size: bicubic, antialiased, rounded to 8 bit."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
