"""VQ-VAE-2 as a generator: coarse codes of a prompt, fine codes of these, and one decoding of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import PictureCodes
from ldm.generators.code_bundle import CodeByCode, Report, TextToCodes, open_parts
from ldm.generators.token_loop import CHUNK, generate_codes
from ldm.models.two_level import TwoLevelPriors
from ldm.randomness.seeds import SEED_LIMIT, key_of


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
