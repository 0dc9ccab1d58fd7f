"""VQ-Diffusion as a generator: codes are unmasked step by step, and the pictures' tokenizer decodes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ldm import NotFinite, UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import PictureCodes
from ldm.construct import construct
from ldm.diffusion.discrete import MaskAndReplace
from ldm.diffusion.discrete_sampling import Ancestral, guided
from ldm.generators.code_bundle import Report, TextToCodes, check_codes, open_parts
from ldm.generators.diffusion_bundle import process_of
from ldm.generators.token_loop import CHUNK, filled
from ldm.models.code_denoiser import CodeDenoiser
from ldm.randomness.uniforms import SeededUniforms, gumbel

SAMPLERS = "ldm.diffusion.discrete_sampling"


@dataclass(frozen=True, kw_only=True)
class DiscreteDiffusion(TextToCodes):
    """The generator. Raises UserError for an option out of range, or parts that do not go together."""

    OPTIONS: ClassVar = ("steps", "truncation", "purity", "scale")

    net: CodeDenoiser
    process: MaskAndReplace
    steps: int = 100
    truncation: float | int = 1.0  # of p(x_0), see `truncated`
    purity: float | int | None = None  # weight of the purity prior; None: ancestral sampling
    scale: float | int = 1.0  # of guidance; 1: none

    def __post_init__(self) -> None:
        check_parts(self.net, self.process, self.codes)
        if not -torch.inf < self.scale < torch.inf:
            raise UserError(f"scale={self.scale} must be a finite number")
        self.sampler.times(self.process)

    @cached_property
    def sampler(self) -> Ancestral:
        """How codes are sampled."""
        node = {"_target_": f"{SAMPLERS}.Ancestral", "steps": self.steps, "truncation": self.truncation}
        if self.purity is not None:
            node |= {"_target_": f"{SAMPLERS}.Purity", "weight": self.purity}
        sampler: Ancestral = construct(node)
        return sampler

    def sample_codes(
        self, prompts: Sequence[str], seeds: Sequence[int], report: Report
    ) -> Int64[Tensor, "b n"]:
        """Codes of pictures. Raises NotFinite for probabilities that are NaN."""
        context = self.net.context(self.texts.states(prompts))
        made = torch.zeros(len(seeds), self.net.grid**2, dtype=torch.int64, device=self.device)
        chunks = range(0, len(seeds), CHUNK)
        for start in chunks:
            own = slice(start, start + CHUNK)
            # kernels sum in an order that the number of rows decides, and one code changes the picture: the
            # last chunk is filled up
            few, rows = [*seeds[own], *[seeds[-1]] * (CHUNK - len(seeds[own]))], context[own]

            def watch(number: int, codes: Tensor, own: slice = own, count: int = len(rows)) -> None:
                """Reports the expected codes of one chunk."""
                made[own] = codes[:count]
                report(made, own.start // CHUNK * self.steps + number, len(chunks) * self.steps)

            # float32, whatever the training's precision
            with torch.autocast(self.device.type, enabled=False):
                made[own] = self._chunk(filled(rows), few, watch)[: len(rows)]
        return made

    def _chunk(self, context: Tensor, seeds: list[int], watch: Callable[[int, Tensor], Any]) -> Tensor:
        """Codes of one chunk."""
        if self.scale != 1:
            context = torch.cat([context, self.net.empty.expand_as(context)])
        pairs, copies = self.net.project_context(context), len(context) // len(seeds)

        def predict(x: Tensor, t: int) -> Tensor:
            """Guided log p(x_0 | x_t); both of guidance's in one call."""
            times = torch.full((len(context),), t, device=self.device)
            log_p = self.net(x.repeat(copies, 1), times, pairs).float().log_softmax(dim=-1)
            if not log_p.isfinite().all():
                raise NotFinite("the probabilities of codes are NaN or infinite: take another bundle")
            if copies == 1:
                return log_p
            cond, empty = log_p.chunk(2)
            return guided(cond, empty, self.scale)

        uniforms = SeededUniforms(seeds, device=self.device)
        return self.sampler(
            predict,
            self.process,
            places=self.net.grid**2,
            gumbel=lambda *shape: gumbel(uniforms(*shape)),
            watch=watch,
        )

    @property
    def nfe(self) -> int:
        """Network evaluations for a picture, both of guidance's counted."""
        return self.steps * (1 + (self.scale != 1))


def open_discrete_diffusion(bundle: Bundle, **options: Any) -> TextToCodes:
    """The generator of a bundle, with some of its `OPTIONS`.

    Raises UserError for a wrong option. Raises BundleError where parts are missing or do not go together.
    """
    process = process_of(bundle, MaskAndReplace)  # first: a refusal does not wait for the networks
    return DiscreteDiffusion.made({"process": process, **open_parts(bundle, CodeDenoiser)}, options)


def check_parts(net: CodeDenoiser, process: MaskAndReplace, codes: PictureCodes) -> None:
    """Refuses a network or a process for other codes than the tokenizer's, or for other timesteps."""
    own = codes.net
    check_codes("backbone.num_codes", net.num_codes, own.num_codes)
    check_codes("backbone.grid", net.grid, own.grid)
    check_codes("process.num_codes", process.num_codes, own.num_codes)
    if process.num_steps != net.num_steps:
        raise UserError(
            f"process.num_steps={process.num_steps}, but backbone.num_steps={net.num_steps}: make them equal"
        )
