"""Generators of rows of codes from text states: VQ-Diffusion, and VQ-VAE-2 with its two levels.

VQ-Diffusion unmasks codes step by step. VQ-VAE-2 samples coarse codes of a prompt and fine codes of these.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from ldm import NotFinite, UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import Frozen, PictureCodes
from ldm.construct import construct
from ldm.diffusion.discrete import Ancestral, MaskAndReplace, guided
from ldm.generators.code_bundle import CodeByCode, OnCodes, check_codes, open_network
from ldm.generators.diffusion_bundle import process_of
from ldm.generators.generator import Progress, Source, Watch
from ldm.generators.token_loop import CHUNK, filled, generate_codes
from ldm.models.code_denoiser import CodeDenoiser
from ldm.models.two_level import TwoLevelPriors
from ldm.randomness.seeds import SEED_LIMIT, key_of
from ldm.randomness.uniforms import SeededUniforms, gumbel
from ldm.tokenizers import Tokenizer

SAMPLERS = "ldm.diffusion.discrete"


@dataclass(frozen=True)
class Texts(Frozen):
    """A frozen text encoder with its tokenizer."""

    NETWORKS: ClassVar = ("encoder",)
    CHUNKS: ClassVar = (CHUNK, CHUNK)

    encoder: Any  # `ldm.codec.TextEncoder`
    tokenizer: Tokenizer

    @classmethod
    def open(cls, bundle: Bundle) -> "Texts":
        """The text encoder and tokenizer of a bundle; BundleError where one is missing."""
        return cls(*bundle.texts())

    def states(self, prompts: Sequence[str]) -> Float[Tensor, "b m d"]:
        """The states of each prompt, the same whatever its batch."""
        tokens = self.tokenizer.encode(prompts)
        return self.in_chunks(lambda chunk: self.encoder(chunk).states.float(), tokens)


Report = Callable[[Tensor, int, int], None]
"""Receives the codes as the network expects them now (b n), the step, and the number of steps."""


@dataclass(frozen=True, kw_only=True)
class TextToCodes(OnCodes, ABC):
    """A generator (see `ldm.generators.generator.Generator`) of rows of codes, which a tokenizer decodes."""

    MOVED: ClassVar = ("net", "codes", "texts")
    starts_from_pictures: ClassVar = False  # it generates from prompts alone

    texts: Texts

    @abstractmethod
    def sample_codes(
        self, prompts: Sequence[str], seeds: Sequence[int], report: Report
    ) -> Int64[Tensor, "b n"]:
        """A row of codes for each prompt and seed, whatever the batch; `report` is called at each step."""

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed; it does not depend on its batch, to the byte.

        Raises UserError unless there is one seed per prompt, or for pictures to start from.
        """
        if source is not None:
            raise UserError("this generator starts from no pictures: leave image= and mask= out")
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a picture")

        def report(codes: Tensor, step: int, steps: int) -> None:
            if watch is not None:
                watch(Progress(step, steps, partial(self.codes.decode, codes)))

        with torch.no_grad():
            return self.codes.decode(self.sample_codes(prompts, seeds, report))

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that reads the prompts."""
        return self.texts.tokenizer


def open_parts(bundle: Bundle, kind: type[nn.Module]) -> dict[str, Any]:
    """The parts of `open_network`, and the text encoder of a bundle; raises as it does."""
    return {**open_network(bundle, kind), "texts": Texts.open(bundle)}


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


@dataclass(frozen=True, kw_only=True)
class TwoLevel(CodeByCode, TextToCodes):
    """The generator; the top level, which reads the text, has guidance alone.

    Raises UserError for an option out of range, or parts that do not go together.
    """

    OPTIONS: ClassVar = ("temperature", "top_k", "top_p", "scale")

    net: TwoLevelPriors

    def __post_init__(self) -> None:
        check_levels(self.net, self.codes)
        self.choice()  # refuses wrong options

    def sample_codes(
        self, prompts: Sequence[str], seeds: Sequence[int], report: Report
    ) -> Int64[Tensor, "b n"]:
        """Codes of both levels, the top ones first. Raises NotFinite for logits that are NaN."""
        states, (top, bottom) = self.texts.states([*prompts, ""]), (self.net.top, self.net.bottom)
        chunks = -(-len(seeds) // CHUNK)
        steps, before = chunks * (top.length + bottom.length), chunks * top.length
        fine = torch.zeros(len(seeds), bottom.length, dtype=torch.int64, device=self.device)
        coarse = generate_codes(
            top,
            states[:-1],
            seeds,
            self.choice(),
            empty=states[-1:].expand(len(seeds), -1, -1),
            watch=lambda codes, step: report(torch.cat([codes, fine], dim=1), step, steps),
        )
        fine = generate_codes(
            bottom,
            coarse,
            # other numbers than the top level's, place by place
            [key_of(seed, "bottom") % SEED_LIMIT for seed in seeds],
            self.choice(scale=1.0),
            watch=lambda codes, step: report(torch.cat([coarse, codes], dim=1), before + step, steps),
        )
        return torch.cat([coarse, fine], dim=1)

    @property
    def nfe(self) -> int:
        """Network evaluations for a picture: one for each code, of the top level two with guidance."""
        return self.net.top.length * (1 + (self.scale != 1)) + self.net.bottom.length


def open_two_level(bundle: Bundle, **options: Any) -> TextToCodes:
    """The generator of a bundle, with some of its `OPTIONS`.

    Raises UserError for a wrong option. Raises BundleError where parts are missing or do not go together.
    """
    return TwoLevel.made(open_parts(bundle, TwoLevelPriors), options)


def check_levels(net: TwoLevelPriors, codes: PictureCodes) -> None:
    """Refuses priors of other codes than the tokenizer's."""
    wanted = [tuple(level) for level in codes.net.levels]
    found = [(prior.grid, prior.num_codes) for prior in (net.top, net.bottom)]
    if found != wanted:
        raise UserError(
            f"backbone: its priors are of {found} (grid, num_codes), but the tokenizer of pictures has"
            f" {wanted}: set backbone.top and backbone.bottom to them, or take another codes.image_tokenizer"
        )
