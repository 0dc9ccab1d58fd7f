"""Pictures and masks to start from, prepared as training pictures are."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ldm import UserError
from ldm.data.decode import EncodedPicture, centre, cut
from ldm.generators.generator import Source
from ldm.sampling.jobs import Job


def source_of(jobs: Sequence[Job], *, size: int) -> Source | None:
    """The pictures that jobs start from, all of them or none; jobs without a mask are redrawn everywhere.

    Raises:
        UserError: a file that is no whole picture.
    """
    if jobs[0].image is None:
        return None
    images = torch.stack([prepared(job.image, size=size) for job in jobs])
    redrawn = None
    if any(job.mask is not None for job in jobs):
        redrawn = torch.stack([redrawn_pixels(job.mask, size=size) for job in jobs])
    return Source(images=images, strength=jobs[0].drawn_strength, redrawn=redrawn)


@lru_cache(maxsize=64)
def prepared(path: Path, *, size: int) -> Tensor:
    """The largest centred square of a picture, resized (bicubic, antialiased): uint8, 3 h w.

    Raises:
        UserError: the file is no whole picture.
    """
    picture = opened(path)
    try:
        return cut(picture, centre(picture.height, picture.width, aspect=1.0), height=size, width=size)
    except UserError as error:
        raise UserError(f"{path} can't be decoded ({error}): take another picture") from error


def redrawn_pixels(path: Path | None, *, size: int) -> Tensor:
    """Where a mask, prepared like a picture, is lighter than middle grey, or everywhere: bool, 1 h w."""
    if path is None:
        return torch.ones(1, size, size, dtype=torch.bool)
    return prepared(path, size=size).float().mean(dim=0, keepdim=True) > 127.5


def check_inputs(jobs: Sequence[Job], *, size: int) -> list[str]:
    """Reads the headers of all pictures and masks; returns what there is to tell, in lines.

    Raises:
        UserError: no picture, or a mask that has not the size of its picture.
    """
    resized = set()
    for image, mask in {(job.image, job.mask): None for job in jobs if job.image is not None}:
        height, width = shape(image)
        if mask is not None and shape(mask) != (height, width):
            other_height, other_width = shape(mask)
            raise UserError(
                f"mask={mask} has {other_width} x {other_height} pixels and image={image} {width} x {height}:"
                " draw the mask over the picture, at its size"
            )
        if (height, width) != (size, size):
            resized.add(image)
    if not resized:
        return []
    named = next(iter(resized)).name if len(resized) == 1 else f"{len(resized)} pictures"
    return [
        f"{named}: the largest square in the middle, resized to {size} x {size} px like training pictures"
    ]


@lru_cache(maxsize=1024)
def shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture, held upright.

    Raises:
        UserError: the file is no picture.
    """
    picture = opened(path)
    return picture.height, picture.width


def opened(path: Path) -> EncodedPicture:
    """A picture whose header has been read.

    Raises:
        UserError: the file is no picture.
    """
    try:
        return EncodedPicture(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path} is no picture ({error}): take a PNG, JPEG or WebP file") from error
