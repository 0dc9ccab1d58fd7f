"""Diffusion of codes by mask-and-replace (VQ-Diffusion; Gu et al. 2022, sec. 4).

Of K codes, each place keeps its code, has it replaced by a code chosen evenly, or masked by the index K, for
good. With alpha-bar and gamma-bar from t = 0 (clean) to T, the matrix of every stretch s < t has the form

    q(x_t = i | x_s = j) = a [i = j] + b for codes i and j,    c for i = K,    1 for i = j = K

with a = alpha-bar_t / alpha-bar_s, 1 - c = (1 - gamma-bar_t) / (1 - gamma-bar_s) and a + K b + c = 1 (eq. 7,
8). So a long stride needs no approximation, and a posterior takes O(K). It is computed in logarithms.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError, send

LOG_ZERO = -1e4  # exp is 0 in every dtype, and differences stay finite: -inf - -inf would be NaN
LEAST_LOG = -70.0  # of what is divided by, and of codes that truncation cuts; the released code's number
MOST_STEPS = 10_000


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
