"""Schedules t -> (alpha, sigma): DDPM tables made continuous, zero terminal SNR, rectified flow, EDM."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError
from ldm.diffusion import PerTimestep, Schedule, State, Time


@dataclass(frozen=True, eq=False)
class Table:
    """A DDPM noise table as a continuous schedule: alpha = sqrt(alpha-bar), sigma = sqrt(1 - alpha-bar).

    `alpha_bar` (float64) has one entry more than the table has steps: index i of a table of T steps sits
    at t = (i + 1) / T, and t = 0 is clean (alpha-bar = 1). In between log alpha-bar is linear in t, except
    in a last interval that ends at alpha-bar = 0, where alpha is.

    Raises UserError for an alpha-bar that does not fall from 1 to 0 or above.
    """

    alpha_bar: Float[Tensor, " steps_and_clean"]

    def __post_init__(self) -> None:
        falls = self.alpha_bar[0] == 1 and (self.alpha_bar.diff() <= 0).all() and self.alpha_bar[-1] >= 0
        if self.num_steps < 1 or not falls:  # NaN is neither above nor below
            raise UserError("a schedule's alpha-bar must fall from 1, and not below 0: take betas in [0, 1)")

    @property
    def num_steps(self) -> int:
        """Entries of the DDPM table."""
        return len(self.alpha_bar) - 1

    def __call__(self, t: PerTimestep) -> tuple[PerTimestep, PerTimestep]:
        alpha_bar = self.alpha_bar.to(t.device)
        # float64, as the table: near t = 0 alpha-bar is 1 - 1e-4, of which float32 keeps three digits
        position = t.double() * self.num_steps
        left = position.floor().long().clamp(0, self.num_steps - 1)  # t = 1 ends the last interval
        weight = position - left
        start, end = alpha_bar[left], alpha_bar[left + 1]
        between = torch.lerp(start.log(), end.log(), weight)
        to_zero = 2 * (start.sqrt() * (1 - weight)).log()  # log alpha-bar has no finite end to interpolate to
        log_alpha_bar = torch.where(end > 0, between, to_zero)
        # expm1 keeps the digits of sigma near t = 0, where 1 - alpha-bar would cancel
        alpha, sigma = (log_alpha_bar / 2).exp(), (-log_alpha_bar.expm1()).sqrt()
        return alpha.to(t.dtype), sigma.to(t.dtype)


def from_betas(betas: Float[Tensor, " steps"]) -> Table:
    """The table of a DDPM with these betas (Ho et al. 2020, Eq. 4)."""
    # float64: in float32 sigma near t = 0, where alpha-bar is almost 1, keeps three digits
    alpha_bar = (1 - betas.double()).cumprod(dim=0)
    return Table(torch.cat([alpha_bar.new_ones(1), alpha_bar]))


def listed(*, betas: Sequence[float]) -> Table:
    """The table of betas that are given one by one, as in a checkpoint with a table of its own."""
    return from_betas(torch.tensor(betas, dtype=torch.float64))


def linear(*, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Table:
    """Betas evenly spaced (Ho et al. 2020, Sec. 4)."""
    _check(num_steps, beta_start, beta_end)
    return from_betas(torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64))


def scaled_linear(*, num_steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012) -> Table:
    """Square roots of beta evenly spaced (Rombach et al. 2022; the numbers are Stable Diffusion's)."""
    _check(num_steps, beta_start, beta_end)
    start, end = math.sqrt(beta_start), math.sqrt(beta_end)
    return from_betas(torch.linspace(start, end, num_steps, dtype=torch.float64) ** 2)


def cosine(*, num_steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> Table:
    """alpha-bar falls as a squared cosine (Nichol & Dhariwal 2021, Eq. 17)."""
    _check(num_steps)
    t = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
    wave = torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2
    # the last beta would be 1; cut, alpha-bar stays above 0 (Nichol & Dhariwal 2021, Sec. 3.2)
    return from_betas((1 - wave[1:] / wave[:-1]).clamp(max=max_beta))


def _check(num_steps: int, *betas: float) -> None:
    if num_steps < 1 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(f"a table of {num_steps=} with betas {betas}: take at least 1, and betas in [0, 1)")


def zero_terminal_snr(table: Table) -> Table:
    """The same table with alpha exactly 0 at t = 1, its first noisy entry kept (Lin et al. 2023, Alg. 1)."""
    alpha = table.alpha_bar[1:].sqrt()
    first, last = alpha[0], alpha[-1]
    rescaled = (alpha - last) * (first / (first - last))  # linear: last becomes 0, first stays
    return Table(torch.cat([table.alpha_bar[:1], rescaled**2]))


def rectified_flow(t: PerTimestep) -> tuple[PerTimestep, PerTimestep]:
    """The straight path alpha = 1 - t, sigma = t (Liu et al. 2022; Lipman et al. 2022)."""
    return 1 - t, t  # alpha^2 + sigma^2 < 1 in between, which is why `V` divides by it


def edm(t: PerTimestep) -> tuple[PerTimestep, PerTimestep]:
    """EDM's path for data of unit variance (Karras et al. 2022): sigma / alpha = t / (1 - t), any level.

    Theirs is x0 + sigma * eps with sigma = t / (1 - t), times c_in, so that x_t has unit variance; a normal
    log sigma is then a logit-normal t.
    """
    alpha, sigma = rectified_flow(t)
    # divided by its length: on the straight path x_t has half the variance at t = 1/2
    length = (alpha**2 + sigma**2).sqrt()
    return alpha / length, sigma / length


def noised(x0: State, noise: State, t: Time, schedule: Schedule) -> State:
    """x_t = alpha * x0 + sigma * noise."""
    alpha, sigma = schedule(t)
    return alpha * x0 + sigma * noise


def noise_ratio(schedule: Schedule, t: PerTimestep) -> PerTimestep:
    """sigma / alpha, the noise level in units of the clean signal; infinite at a zero-SNR end."""
    alpha, sigma = schedule(t)
    return sigma / alpha


def time_of_ratio(schedule: Schedule, ratio: PerTimestep) -> PerTimestep:
    """The timesteps at which sigma / alpha has these values; 1 for those beyond the schedule's end."""
    # no closed form: tables have none, and one method for all schedules needs no test per schedule
    below, above = torch.zeros_like(ratio), torch.ones_like(ratio)
    # bisection down to the spacing of float64, not Newton's method: a table's slope jumps at its entries
    for _ in range(60):
        middle = (below + above) / 2
        noisier = noise_ratio(schedule, middle) > ratio
        below, above = torch.where(noisier, below, middle), torch.where(noisier, middle, above)
    return above


def log_signal_ratio(schedule: Schedule, t: Time) -> Time:
    """lambda = log(alpha / sigma): -inf at a zero-SNR end, +inf at t = 0."""
    alpha, sigma = schedule(t)
    return alpha.log() - sigma.log()
