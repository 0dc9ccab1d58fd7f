"""The subjects of an evaluation: pictures of a folder or a split, or the pictures that a bundle generates."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import UInt8
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.data.decode import RULES, EncodedPicture, centre_square
from ldm.data.picture_files import SUFFIXES, find_pictures
from ldm.data.texts import read_columns
from ldm.evaluation.feature_pass import Generate, Observers
from ldm.evaluation.protocol import Request
from ldm.io.reading import hash_file

BATCH = 32  # pictures that are read and looked at together where nothing is generated
CAPTIONS = "captions.csv"
RESIZE = "bicubic, antialiased, rounded to 8 bit"  # what `fit` and the data's own resize do
UNKNOWN = "not known: the pictures were there"


class Pictures(Protocol):
    """Captioned pictures by number, all of one size."""

    size: int  # side in pixels
    sha256: str  # of the pixels and their order
    data_sha256: str  # of the data set that they belong to
    image: Callable[[int], UInt8[Tensor, "3 h w"]]
    keys: Callable[[], list[str]]  # a name of each
    texts: Callable[[], list[list[str]]]  # the captions of each

    def __len__(self) -> int: ...


class PictureFolder:
    """The pictures in and under a folder (`find_pictures`) as `Pictures`, in the order of their paths.

    Keys are paths in the folder without extension. Captions are those of its `captions.csv` (columns file, a
    path in the folder, and caption), or else the files' names, with each _ read as a space.

    Args:
        size: side in pixels that the largest centred square of each is brought to; None leaves pictures as
            they are, which then must be squares of one size.

    Raises UserError: no folder, no pictures in it, a broken one, two with one key, or sizes that differ.
    """

    def __init__(self, path: str | Path, *, size: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise UserError(f"there is no folder {self.path}: name one that holds pictures")
        found = find_pictures(self.path)
        for sentence in found.sentences(self.path):
            rank_zero_only(print)(sentence)
        self.names = found.pictures
        if not self.names:
            raise UserError(f"folder {self.path} holds no picture that ends with {', '.join(SUFFIXES)}")
        first: dict[str, str] = {}
        for key, name in zip(self.keys(), self.names, strict=True):
            if (twin := first.setdefault(key, name)) != name:
                raise UserError(
                    f"{self.path / twin} and {Path(name).name} differ only in their extension: rename one, "
                    "or remove it if both show the same"
                )
        self.size = self._common_size() if size is None else size

    @cached_property
    def sha256(self) -> str:
        """Identity of the files, their order, and the size that they are brought to."""
        digest = hashlib.sha256(f"{self.size} px, rules {RULES}".encode())
        for name in self.names:
            digest.update(f"/{name}/{hash_file(self.path / name)}".encode())
        return digest.hexdigest()

    data_sha256 = property(lambda self: self.sha256)  # a folder is a data set of its own

    def __len__(self) -> int:
        return len(self.names)

    def image(self, number: int) -> UInt8[Tensor, "3 h w"]:
        """A picture; raises a UserError if its file is damaged."""
        return self._read(self.names[number], lambda it: centre_square(it, self.size))

    def keys(self) -> list[str]:
        """The path of each picture in the folder, without extension."""
        return [Path(name).with_suffix("").as_posix() for name in self.names]

    def texts(self) -> list[list[str]]:
        """The caption of each picture; UserError for a `captions.csv` without one line for each file."""
        table = self.path / CAPTIONS
        if not table.is_file():
            return [[Path(name).stem.replace("_", " ")] for name in self.names]
        lines = read_columns(table, ("file", "caption"))
        captions = dict(lines)
        if twice := next((file for file, text in lines if captions[file] != text), None):
            raise UserError(f"{table} has several captions of {twice}: keep one of them")
        if missing := [name for name in self.names if name not in captions]:
            raise UserError(
                f"{table} lacks {len(missing)} of the {len(self)} files, {missing[0]} first: add them"
            )
        return [[captions[name]] for name in self.names]

    def _common_size(self) -> int:
        sizes = {name: self._read(name, lambda it: (it.width, it.height)) for name in self.names}
        (width, height), count = Counter(sizes.values()).most_common(1)[0]
        if width == height and count == len(sizes):
            return width
        odd = next((name for name, size in sizes.items() if size != (width, height)), self.names[0])
        raise UserError(
            f"{self.path / odd} has {sizes[odd][0]} x {sizes[odd][1]} pixels; {count} of {len(sizes)} "
            f"pictures have {width} x {height}: remove it if it is not to be measured; if all are, "
            f"protocol.size=<pixels> takes the largest centred square of each, at one size"
        )

    def _read(self, name: str, use: Callable[[EncodedPicture], Any]) -> Any:
        path = self.path / name
        try:
            return use(EncodedPicture(path.read_bytes()))
        except UserError as error:
            raise UserError(f"{path} can't be decoded ({error}): replace or remove it") from error


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a function from requests to pictures, and what is recorded of its origin."""

    kind: Literal["bundle", "pictures"]
    generate: Generate
    path: str
    sha256: str
    size: int  # side of its pictures in pixels
    generation: Mapping[str, Any]  # for the protocol: the generator's settings and `nfe`
    batch_size: int = BATCH  # pictures that are generated together
    origin: Mapping[str, Any] = field(default_factory=dict)  # what is recorded of the training
    # that its settings name, as {path: ..., sha256: ...} by dotted key
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    params: int | None = None  # of the network that was trained
    judges: Observers = field(default_factory=Observers)  # its own networks, beside the protocol's
    pictures: Pictures | None = None  # those that are measured, where they are there already
    # the ldm.tokenizers.Tokenizer that reads its prompts; a comparison of two folders imports none
    tokenizer: Any = None
    round_trip: Callable[[Tensor], Tensor] | None = None  # uint8 pictures through its autoencoder and back

    def at(self, size: int) -> "Subject":
        """The same with all its pictures brought to a protocol's size."""
        through = self.round_trip
        if size == self.size:
            return self
        return replace(
            self,
            generate=lambda requests: fit(self.generate(requests), size=size),
            round_trip=through and (lambda images: fit(through(fit(images, size=self.size)), size=size)),
            size=size,
        )


def picture_subject(pictures: Pictures, *, path: str) -> Subject:
    """Pictures that are there: each is found by the key of the picture that its caption belongs to."""
    unknown = dict.fromkeys(("sampler", "guidance", "generator"), UNKNOWN)
    return Subject(
        kind="pictures",
        generate=found_in(pictures, path=path),
        path=path,
        sha256=pictures.sha256,
        size=pictures.size,
        generation=unknown | {"nfe": None, "precision": "uint8"},
        pictures=pictures,
    )


def found_in(pictures: Pictures, *, path: str) -> Generate:
    """A function that finds pictures called like the requests, with or without the set's folder.

    It raises UserError: a request whose picture is missing.
    """
    numbers = {key: number for number, key in enumerate(pictures.keys())}

    def look_up(requests: Sequence[Request]) -> Tensor:
        """The pictures of a batch: uint8, b 3 h w."""
        images = []
        for name in (request.name for request in requests):
            if (number := numbers.get(name, numbers.get(name.partition("/")[2]))) is None:
                raise UserError(
                    f"{path} has no picture {name!r} among its {len(numbers)}: name the files by the list "
                    f"that list_prompts=<file.csv> writes, or take protocol=pictures, which needs no captions"
                )
            images.append(pictures.image(number))
        return torch.stack(images)

    return look_up


def fit(images: UInt8[Tensor, "b 3 h w"], *, size: int) -> UInt8[Tensor, "b 3 s s"]:
    """Square pictures at another size: bicubic, antialiased, rounded to 8 bit."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(images.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)
