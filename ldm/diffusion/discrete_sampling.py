"""Sampling codes from mask-and-replace diffusion: in strides or by purity, with truncation and guidance."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.diffusion.discrete import LEAST_LOG, LOG_ZERO, MaskAndReplace

Predict = Callable[[Tensor, int], Tensor]
"""(x_t, t) -> log p(x_0 | x_t), b n k."""

Gumbel = Callable[..., Tensor]
"""(*shape) -> the next Gumbel noise of each picture, b *shape."""


@dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Samples each x_s from p(x_s | x_t), from T down to 0 in even strides; exact for any number of steps.

    The released code strides with the matrix of a single step, which is an approximation.
    Raises UserError for no steps or a `truncation` outside (0, 1].
    """

    steps: int = 100  # at most those of the process
    truncation: float | int = 1.0  # of p(x_0), see `truncated`

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise UserError(f"sampler: steps={self.steps} must be a whole number, at least 1")
        if not 0 < self.truncation <= 1:
            raise UserError(f"sampler: truncation={self.truncation} must lie in (0, 1]; 1 cuts nothing")

    def times(self, process: MaskAndReplace) -> list[int]:
        """Timesteps from T down to 0; UserError for more steps than the process has."""
        if self.steps > process.num_steps:
            raise UserError(f"sampler: steps={self.steps} are more than the process has, {process.num_steps}")
        return [round(process.num_steps * left / self.steps) for left in range(self.steps, -1, -1)]

    def __call__(
        self,
        predict: Predict,
        process: MaskAndReplace,
        *,
        places: int,
        gumbel: Gumbel,
        watch: Callable[[int, Tensor], Any] | None = None,
    ) -> Int[Tensor, "b n"]:
        """Codes of `places` places each; `watch` is called with each step's number and likeliest x_0."""
        x = self.start(process, places, gumbel)
        for number, (t, s) in enumerate(pairwise(self.times(process)), start=1):
            log_p = predict(x, t)
            x = self.step(truncated(log_p, self.truncation), process, x, t, s, gumbel)
            if watch is not None:
                watch(number, torch.where(x == process.num_codes, log_p.argmax(dim=-1), x))
        return x

    def start(self, process: MaskAndReplace, places: int, gumbel: Gumbel) -> Int[Tensor, "b n"]:
        """x_T."""
        noise = gumbel(places, process.num_codes + 1)
        return (process.start().to(noise.device) + noise).argmax(dim=-1)

    def step(
        self,
        log_p: Float[Tensor, "b n k"],
        process: MaskAndReplace,
        x: Int[Tensor, "b n"],
        t: int,
        s: int,
        gumbel: Gumbel,
    ) -> Int[Tensor, "b n"]:
        """x_s of x_t."""
        now, then = (torch.full((len(x),), each) for each in (t, s))
        logits = process.posterior(log_p, x, now, then)
        return (logits + gumbel(*logits.shape[1:])).argmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Purity(Ancestral):
    """Opens at each step as many masks as the schedule expects, the surer places first (Tang et al. 2022).

    Places are sampled without replacement in proportion to their purity, the largest probability of a code
    there; codes from p sharpened by 1 + weight x purity (eq. 10 and 11). Open places stay.
    Raises UserError as `Ancestral`, and for a weight below 0.
    """

    weight: float | int = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.weight < torch.inf:
            raise UserError(f"sampler: purity={self.weight} must be a finite number, at least 0")

    def start(self, process: MaskAndReplace, places: int, gumbel: Gumbel) -> Int[Tensor, "b n"]:
        """All masked, whatever the schedule: a place that is open would never be mended."""
        return torch.full_like(gumbel(places), process.num_codes, dtype=torch.int64)

    def step(
        self,
        log_p: Float[Tensor, "b n k"],
        process: MaskAndReplace,
        x: Int[Tensor, "b n"],
        t: int,
        s: int,
        gumbel: Gumbel,
    ) -> Int[Tensor, "b n"]:
        """x_s of x_t."""
        places = x.shape[1]
        still, then = (round(places * (process.masked[each] / process.masked[-1]).item()) for each in (t, s))
        largest = log_p.amax(dim=-1)
        log_purity = largest - largest.amax(dim=-1, keepdim=True)
        sharp = ((1 + self.weight * log_purity.exp())[..., None] * log_p).log_softmax(dim=-1)
        codes = (sharp + gumbel(*sharp.shape[1:])).argmax(dim=-1)
        # the largest of log weights plus Gumbel noise are a sample without replacement
        order = torch.where(x == process.num_codes, log_purity, LOG_ZERO) + gumbel(places)
        chosen = order.topk(still - then, dim=-1).indices
        return x.scatter(1, chosen, codes.gather(1, chosen))


def truncated(log_p: Float[Tensor, "b n k"], mass: float | int) -> Float[Tensor, "b n k"]:
    """log p with all but the fewest codes that hold `mass` of each place's probability cut to `LEAST_LOG`.

    The code that crosses the mass is kept, and nothing is normalised (Gu et al. 2022, sec. 4.3). With a mass
    of 1 it is `log_p` itself.
    """
    if mass == 1:
        return log_p
    largest, order = log_p.sort(dim=-1, descending=True)
    before = largest.exp().cumsum(dim=-1) - largest.exp()
    kept = torch.empty_like(before, dtype=torch.bool).scatter(-1, order, before < mass)
    return torch.where(kept, log_p, LEAST_LOG)


def guided(
    cond: Float[Tensor, "b n k"], uncond: Float[Tensor, "b n k"], scale: float | int
) -> Float[Tensor, "b n k"]:
    """Classifier-free guidance of log-probabilities, normalised again (Tang et al. 2022, eq. 7)."""
    return torch.lerp(uncond, cond, scale).log_softmax(dim=-1).clamp(min=LEAST_LOG)
