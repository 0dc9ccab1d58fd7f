"""Jobs to pictures with their records, in batches that one call of a generator can make."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm import UserError
from ldm.data.decode import EncodedPicture, centre, cut
from ldm.generators.generator import Opened, Source, Watch
from ldm.sampling.jobs import Job
from ldm.sampling.record import facts_of


class Sample(NamedTuple):
    """A picture, uint8 (3, h, w) on the CPU, with the job that asked for it and its record."""

    job: Job
    image: Tensor
    facts: dict[str, Any]


def batches(jobs: Sequence[Job], *, size: int) -> Iterator[list[Job]]:
    """Jobs that one call can generate together, at most `size` of them, in as few batches as possible."""
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        # what one call can't vary; prompt, seed and pictures are given for each
        key = (job.negative, job.scale, None if job.image is None else job.used_strength)
        alike.setdefault(key, []).append(job)
    for same in alike.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]


def generate_batch(opened: Opened, jobs: Sequence[Job], **watching: Watch) -> list[Sample]:
    """The samples of jobs that share negative prompt, guidance scale and strength; `watch` if it is known."""
    configured = opened.with_options(negative=jobs[0].negative, scale=jobs[0].scale)
    generator = configured.generator
    source = source_of(jobs, size=generator.size)
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    images = generator(prompts, seeds, source=source, **watching).cpu()
    return [
        Sample(job, image, facts_of(job, configured, batch={"place": place, "size": len(jobs)}))
        for place, (job, image) in enumerate(zip(jobs, images, strict=True))
    ]


def check_jobs(opened: Opened, jobs: Sequence[Job]) -> list[str]:
    """Refuses at once what a later batch would refuse, from options and headers of pictures alone.

    Returns lines for the user: source pictures that are resized, prompts that are cut.

    Raises UserError for options, source pictures and masks that the generator doesn't have or can't use.
    """
    for negative, scale in dict.fromkeys((job.negative, job.scale) for job in jobs):
        opened.with_options(negative=negative, scale=scale)
    pairs = list(dict.fromkeys((job.image, job.mask) for job in jobs if job.image is not None))
    if pairs and not opened.generator.starts_from_pictures:
        raise UserError(f"image={pairs[0][0]}: bundle {opened.bundle.place} takes no source pictures")
    lines, side = [], opened.generator.size
    for image, mask in pairs:
        if mask is not None and shape(mask) != shape(image):
            (height, width), (mask_height, mask_width) = shape(image), shape(mask)
            raise UserError(
                f"mask={mask} has {mask_width} x {mask_height} pixels and image={image} {width} x {height}:"
                " take a mask of the picture's size"
            )
    if resized := {image: None for image, _ in pairs if shape(image) != (side, side)}:
        named = next(iter(resized)).name if len(resized) == 1 else f"{len(resized)} pictures"
        lines = [f"{named}: the largest square in the middle, resized to {side} x {side} px"]
    if tokenizer := opened.generator.tokenizer:
        texts = {
            "prompt": dict.fromkeys(job.prompt for job in jobs),
            "negative prompt": dict.fromkeys(job.negative for job in jobs if job.negative),
        }
        lines += [tokenizer.cut_line(list(each), what=name) or "" for name, each in texts.items()]
    return [line for line in lines if line]


def source_of(jobs: Sequence[Job], *, size: int) -> Source | None:
    """The source pictures of jobs, of which all have one or none; without a mask all is generated anew."""
    if jobs[0].image is None:
        return None
    images = torch.stack([prepared(job.image, size=size) for job in jobs])
    redrawn = None
    if any(job.mask is not None for job in jobs):
        redrawn = torch.stack([masked_pixels(job.mask, size=size) for job in jobs])
    return Source(images=images, strength=jobs[0].used_strength, redrawn=redrawn)


def masked_pixels(path: Path | None, *, size: int) -> Tensor:
    """Where a mask, resized like a picture, is lighter than middle grey, or everywhere: bool, 1 h w."""
    if path is None:
        return torch.ones(1, size, size, dtype=torch.bool)
    return prepared(path, size=size).float().mean(dim=0, keepdim=True) > 127.5


@lru_cache(maxsize=64)  # a job's neighbours start from the same picture
def prepared(path: Path, *, size: int) -> Tensor:
    """The largest centred square, resized as training pictures are: uint8, 3 h w; raises UserError."""
    picture = header(path)
    try:
        return cut(picture, centre(picture.height, picture.width, aspect=1.0), height=size, width=size)
    except UserError as error:
        raise UserError(f"{path} can't be decoded ({error}): take another picture") from error


@lru_cache(maxsize=1024)  # asked for several times by each check; a header is small
def shape(path: Path) -> tuple[int, int]:
    """Height and width of a picture, held upright; raises UserError where the file is no picture."""
    picture = header(path)
    return picture.height, picture.width


def header(path: Path) -> EncodedPicture:
    """A picture whose header has been read; raises UserError where the file is no picture."""
    try:
        return EncodedPicture(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path} is no picture ({error}): take a PNG, JPEG or WebP file") from error
