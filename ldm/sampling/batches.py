"""Jobs to pictures, in batches that one call of a generator can make."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ldm import UserError
from ldm.generators.generator import Opened
from ldm.sampling.inputs import source_of
from ldm.sampling.jobs import Job
from ldm.tokenizers import cut_line


def configured(opened: Opened, job: Job) -> Opened:
    """The generator with the options of a job.

    Raises:
        UserError: an option that the generator doesn't have, or that doesn't go with another one.
    """
    return opened.with_options(negative=job.negative, scale=job.scale)


def check_jobs(opened: Opened, jobs: Sequence[Job]) -> None:
    """Refuses at once what a later batch would refuse.

    Raises:
        UserError: as `configured`, or a picture to start from where the generator starts from none.
    """
    for job in {(job.negative, job.scale): job for job in jobs}.values():
        configured(opened, job)
    image = next((job.image for job in jobs if job.image is not None), None)
    if image is not None and not opened.generator.starts_from_pictures:
        raise UserError(
            f"image={image}: the generator of bundle {opened.bundle.place} starts from no picture"
        )


def cut_lines(opened: Opened, jobs: Sequence[Job]) -> list[str]:
    """Lines on prompts and negative prompts that are longer than the generator reads."""
    tokenizer = opened.generator.tokenizer
    if tokenizer is None:
        return []
    texts = {
        "prompt": dict.fromkeys(job.prompt for job in jobs),
        "negative prompt": dict.fromkeys(job.negative for job in jobs if job.negative),
    }
    lines = (cut_line(tokenizer, list(each), what=name) for name, each in texts.items())
    return [line for line in lines if line]


def generate_batch(opened: Opened, jobs: Sequence[Job]) -> Tensor:
    """The pictures of a batch: uint8, b 3 h w, on the CPU."""
    generator = configured(opened, jobs[0]).generator
    source = source_of(jobs, size=generator.size)
    return generator([job.prompt for job in jobs], [job.seed for job in jobs], source=source).cpu()


def batches(jobs: Sequence[Job], *, size: int) -> Iterator[list[Job]]:
    """Jobs that one call can make together, at most `size` of them; as few batches as that allows."""
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        key = (job.negative, job.scale, None if job.image is None else job.drawn_strength)
        alike.setdefault(key, []).append(job)
    for same in alike.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]
