"""Jobs to pictures, in batches that one call of a pipeline can draw."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ldm.checkpoints.pipeline import guidance_of, identified, with_scale
from ldm.drawing.inputs import source_of
from ldm.drawing.job import Job
from ldm.pipeline import TextToImage
from ldm.tokenizers import cut_line


@dataclass(frozen=True, kw_only=True)
class Drawer:
    """A pipeline, and the nodes that it was built from.

    Attributes:
        nodes: `sampler` and `guidance`.
    """

    pipeline: TextToImage
    nodes: Mapping[str, Any]

    @cached_property
    def weak(self) -> str | None:
        """sha256 of the weak bundle that guides; none where there is no such bundle."""
        return identified(self.nodes["guidance"]).get("weak")

    def guidance(self, job: Job) -> Mapping[str, Any]:
        """The guidance node of a job.

        Raises:
            UserError: the job has a scale, the guidance none.
        """
        return self.nodes["guidance"] if job.scale is None else with_scale(self.nodes["guidance"], job.scale)

    def configured(self, job: Job) -> TextToImage:
        """The pipeline as a job asks for it.

        Raises:
            UserError: the job has a scale and the guidance none, or a negative prompt that has no place.
        """
        return self.pipeline.with_options(negative=job.negative, guidance=guidance_of(self.guidance(job)))

    def check(self, jobs: Sequence[Job]) -> None:
        """Refuses at once what a later batch would refuse.

        Raises:
            UserError: as `configured`.
        """
        for job in {(job.negative, job.scale): job for job in jobs}.values():
            self.configured(job)

    def cuts(self, jobs: Sequence[Job]) -> list[str]:
        """What there is to tell of prompts and negative prompts longer than the model reads, in lines."""
        texts = {
            "prompt": dict.fromkeys(job.prompt for job in jobs),
            "negative prompt": dict.fromkeys(job.negative for job in jobs if job.negative),
        }
        tokenizer = self.pipeline.codec.tokenizer
        lines = (cut_line(tokenizer, list(each), what=name) for name, each in texts.items())
        return [line for line in lines if line]

    def __call__(self, jobs: Sequence[Job]) -> Tensor:
        """The pictures of a batch: uint8, b 3 h w, on the CPU."""
        prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
        source = source_of(jobs, size=self.pipeline.size)
        return self.configured(jobs[0])(prompts, seeds, source=source).cpu()


def batches(jobs: Sequence[Job], *, size: int) -> Iterator[list[Job]]:
    """Jobs that one call can draw together, at most `size` of them; as few batches as that allows."""
    alike: dict[tuple[Any, ...], list[Job]] = {}
    for job in jobs:
        key = (job.negative, job.scale, None if job.image is None else job.drawn_strength)
        alike.setdefault(key, []).append(job)
    for same in alike.values():
        for start in range(0, len(same), size):
            yield same[start : start + size]
