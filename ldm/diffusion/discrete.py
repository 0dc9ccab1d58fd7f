"""Diffusion of codes by mask-and-replace, and sampling from it (VQ-Diffusion; Gu et al. 2022, sec. 4).

Of K codes, each place keeps its code, has it replaced by a code chosen evenly, or masked by the index K, for
good. With alpha-bar and gamma-bar from t = 0 (clean) to T, the matrix of every stretch s < t has the form

    q(x_t = i | x_s = j) = a [i = j] + b for codes i and j,    c for i = K,    1 for i = j = K

with a = alpha-bar_t / alpha-bar_s, 1 - c = (1 - gamma-bar_t) / (1 - gamma-bar_s) and a + K b + c = 1 (eq. 7,
8). So a long stride needs no approximation, and a posterior takes O(K). It is computed in logarithms.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError, send

LOG_ZERO = -1e4  # exp is 0 in every dtype, and differences stay finite: -inf - -inf would be NaN
LEAST_LOG = -70.0  # of what is divided by, and of codes that truncation cuts; the released code's number
MOST_STEPS = 10_000

Predict = Callable[[Tensor, int], Tensor]
"""(x_t, t) -> log p(x_0 | x_t), b n k."""

Gumbel = Callable[..., Tensor]
"""(*shape) -> the next Gumbel noise of each picture, b *shape."""


class Stretch(NamedTuple):
    """The matrix from timestep s to t, float64: numbers of each row, b 1 1."""

    keep: Tensor  # a
    replace: Tensor  # b, of each code
    mask: Tensor  # c


@dataclass(frozen=True, kw_only=True)
class MaskAndReplace:
    """The forward process. Raises UserError for a schedule that doesn't fall from certainty."""

    num_codes: int
    kept: Float[Tensor, " steps_and_clean"]  # alpha-bar: 1 at t = 0
    masked: Float[Tensor, " steps_and_clean"]  # gamma-bar: 0 at t = 0

    def __post_init__(self) -> None:
        falls = self.kept[0] == 1 and self.masked[0] == 0 and (self.kept.diff() < 0).all()
        rises = (self.masked.diff() >= 0).all() and (self.kept + self.masked <= 1 + 1e-12).all()
        if self.num_codes < 1 or self.num_steps < 1 or not (falls and rises and self.kept[-1] >= 0):
            raise UserError(
                f"mask-and-replace of num_codes={self.num_codes}, num_steps={self.num_steps}: both must be at"
                " least 1, alpha-bar must fall from 1, gamma-bar rise from 0, and their sum be at most 1"
            )

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.kept) - 1

    def stretch(self, s: Int[Tensor, " b"], t: Int[Tensor, " b"]) -> Stretch:
        """The matrices from timesteps s to t, s <= t."""
        keep = self.kept[t] / self.kept[s]
        stays = (1 - self.masked[t]) / (1 - self.masked[s])
        replace = (stays - keep).clamp(min=0) / self.num_codes  # below 0 by rounding only
        return Stretch(*(each[:, None, None] for each in (keep, replace, 1 - stays)))

    def noised(
        self, x0: Int[Tensor, "b n"], t: Int[Tensor, " b"], uniform: Float[Tensor, "b 2 n"]
    ) -> Int[Tensor, "b n"]:
        """A sample of q(x_t | x_0): the first number decides what happens, the second the new code."""
        keep, _, mask = (send(each[:, 0].float(), x0.device) for each in self.stretch(torch.zeros_like(t), t))
        what, which = uniform.unbind(1)
        code = (which * self.num_codes).long().clamp(max=self.num_codes - 1)
        replaced = torch.where(what < keep + mask, torch.full_like(x0, self.num_codes), code.to(x0.dtype))
        return torch.where(what < keep, x0, replaced)

    def start(self) -> Float[Tensor, " k1"]:
        """Log-probabilities of codes and mask at T, without a picture; the released schedule masks all."""
        mask = self.masked[-1] / (1 - self.kept[-1])
        codes = ((1 - mask).clamp(min=0) / self.num_codes).expand(self.num_codes)
        return _log(torch.cat([codes, mask[None]]), torch.empty(0))

    def posterior(
        self, log_p: Float[Tensor, "b n k"], x: Int[Tensor, "b n"], t: Int[Tensor, " b"], s: Int[Tensor, " b"]
    ) -> Float[Tensor, "b n k1"]:
        """log p(x_s | x_t) = log sum over x_0 of q(x_s | x_t, x_0) p(x_0 | x_t), with s < t (eq. 5 and 10).

        Args:
            log_p: log p(x_0 | x_t) over the codes; with a one-hot p it is the true posterior.
            x: x_t, with `num_codes` for the mask.

        Returns log-probabilities of the codes and, last, of the mask; for s = 0 they are `log_p`, unless
        the process replaces nothing and x_t is a code.
        """
        log_p = log_p if log_p.dtype == torch.float64 else log_p.float()
        is_masked = (x == self.num_codes)[..., None]
        is_own = torch.arange(self.num_codes, device=x.device) == x[..., None]
        clean = torch.zeros_like(t)
        # each x_0 by how well it explains x_t
        weight = log_p - self._log_reach(self.stretch(clean, t), is_own, is_masked, log_p, least=LEAST_LOG)
        total = weight.logsumexp(dim=-1, keepdim=True)
        keep, replace, mask = (_log(each, log_p) for each in self.stretch(clean, s))
        codes = torch.logaddexp(keep + weight, replace + total)
        codes = codes + self._log_reach(self.stretch(s, t), is_own, is_masked, log_p, least=LOG_ZERO)
        still = torch.where(is_masked, mask + total, LOG_ZERO)  # only a mask can have been one before
        return torch.cat([codes, still], dim=-1).log_softmax(dim=-1)

    def _log_reach(
        self,
        stretch: Stretch,
        is_own: Bool[Tensor, "b n k"],
        is_masked: Bool[Tensor, "b n 1"],
        like: Tensor,
        *,
        least: float,
    ) -> Float[Tensor, "b n k"]:
        """log q(x_t | code) of each code before; `is_own` marks x_t itself."""
        keep, replace, mask = stretch
        own, other, masked = (_log(each, like).clamp(min=least) for each in (keep + replace, replace, mask))
        return torch.where(is_masked, masked, torch.where(is_own, own, other))

    def divergence(
        self,
        log_p: Float[Tensor, "b n k"],
        x0: Int[Tensor, "b n"],
        x: Int[Tensor, "b n"],
        t: Int[Tensor, " b"],
    ) -> Float[Tensor, "b n"]:
        """KL of the true posterior of x_{t-1} and the predicted one, in nats; at t = 1, -log p(x_0 | x_1)."""
        certain = torch.full_like(log_p, LOG_ZERO).scatter(-1, x0[..., None].long(), 0.0)
        truth = self.posterior(certain, x, t, t - 1)
        return (truth.exp() * (truth - self.posterior(log_p, x, t, t - 1))).sum(dim=-1)

    @property
    def end_divergence(self) -> float:
        """KL of q(x_T | x_0) and the start of sampling, in nats for each place: the bound's last term."""
        keep, replace = self.kept[-1].item(), (1 - self.kept[-1] - self.masked[-1]).item() / self.num_codes
        # all probabilities but that of x_0 itself differ by the factor 1 - keep
        return 0.0 if keep == 0 else math.log1p(-keep) + (keep + replace) * math.log1p(keep / replace)


def _log(p: Tensor, like: Tensor) -> Tensor:
    """The logarithm in float64, then as `like`; of 0 it is `LOG_ZERO`."""
    return send(p.log().clamp(min=LOG_ZERO).to(like.dtype), like.device)


def paper(*, num_codes: int, num_steps: int = 100) -> MaskAndReplace:
    """The paper's schedule: at T a place is masked by 0.9 and replaced by 0.1 (Gu et al. 2022, sec. 5.1)."""
    share = _shares(num_steps)
    return MaskAndReplace(num_codes=num_codes, kept=1 - share, masked=0.9 * share)


def released(*, num_codes: int, num_steps: int = 100) -> MaskAndReplace:
    """The schedule of the released code and weights: it replaces by 1e-6 at all t, practically mask-only."""
    first, last = 0.99999, 0.000009
    share = _shares(num_steps, first=1)
    kept, masked = first + (last - first) * share, last + (first - last) * share
    one, zero = share.new_ones(1), share.new_zeros(1)
    return MaskAndReplace(num_codes=num_codes, kept=torch.cat([one, kept]), masked=torch.cat([zero, masked]))


def mask_only(*, num_codes: int, num_steps: int = 100) -> MaskAndReplace:
    """No replacement: a place is masked by t / T (the absorbing process; Austin et al. 2021, sec. 3.1)."""
    share = _shares(num_steps)
    return MaskAndReplace(num_codes=num_codes, kept=1 - share, masked=share)


def _shares(num_steps: int, *, first: int = 0) -> Float[Tensor, " steps"]:
    """Even steps from 0 at timestep `first` to 1 at T. Raises UserError for too few or too many timesteps."""
    if not first < num_steps <= MOST_STEPS:
        raise UserError(f"process: num_steps={num_steps} must lie between {first + 1} and {MOST_STEPS:,}")
    return torch.linspace(0, 1, num_steps + 1 - first, dtype=torch.float64)


def auxiliary(log_p: Float[Tensor, "b n k"], x0: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    """-log p(x_0 | x_t) of every place, in nats (Gu et al. 2022, eq. 11)."""
    return F.nll_loss(log_p.transpose(1, 2), x0.long(), reduction="none")


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
