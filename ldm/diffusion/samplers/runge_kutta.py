"""Euler's and Heun's methods on the probability flow, and the churn that makes them stochastic."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ldm import UserError
from ldm.diffusion import Denoiser, Noise, Schedule, State, Time, Times
from ldm.diffusion.samplers.one_step import given, step
from ldm.diffusion.schedules import noise_ratio, time_of_ratio

MOST_CHURN = math.sqrt(2) - 1  # of sigma / alpha in a step: never more new noise than there is already


@dataclass(frozen=True, kw_only=True)
class Churn:
    """Fresh noise before a step, whose timestep is raised to match (Karras et al. 2022, Alg. 2, lines 4-6).

    Attributes:
        amount: S_churn, shared by all steps; each raises sigma / alpha by amount / steps, at most by 41 %.
        low, high: S_tmin and S_tmax, the sigma / alpha between which it happens.
        inflation: S_noise, the standard deviation of the fresh noise; a little over 1 keeps detail.

    Raises UserError for a negative amount and for an empty interval.
    """

    amount: float
    low: float = 0.0
    high: float = math.inf
    inflation: float = 1.0

    def __post_init__(self) -> None:
        if self.amount < 0:
            raise UserError(f"churn amount={self.amount} is negative: 0 adds no noise")
        if not self.low < self.high:
            raise UserError(f"churn from {self.low} to {self.high} is empty: low must be below high")

    def __call__(
        self, x: State, t: Time, schedule: Schedule, *, noise: Noise, steps: int
    ) -> tuple[State, Time]:
        """x with noise added, and its raised timestep, at most 1."""
        ratio = noise_ratio(schedule, t)
        raise_by = min(self.amount / steps, MOST_CHURN)  # gamma_i of the paper
        if raise_by == 0 or not self.low <= ratio <= self.high:
            return x, t
        raised = time_of_ratio(schedule, ratio * (1 + raise_by))
        if raised <= t:  # t is the schedule's end: no timestep has more noise
            return x, t
        (alpha, sigma), (alpha_raised, sigma_raised) = schedule(t), schedule(raised)
        # the signal shrinks to the raised timestep's share; fresh is the noise that its sigma still lacks
        kept = alpha_raised / alpha
        fresh = (sigma_raised**2 - (kept * sigma) ** 2).clamp(min=0).sqrt()
        return kept * x + self.inflation * fresh * noise(x), raised


def euler(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    churn: Churn | None = None,
) -> State:
    """Euler's method in (x / alpha, sigma / alpha) (Karras et al. 2022, Alg. 2 without lines 9 to 11).

    First order, one call a step; without churn it is DDIM. Raises UserError for churn without `noise`.
    """
    for t, s in pairwise(times):
        if churn is not None:
            x, t = churn(x, t, schedule, noise=given(noise, "churn"), steps=len(times) - 1)
        x = step(x, denoise(x, t), t, s, schedule)
    return x


def edm(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    churn: Churn | None = None,
) -> State:
    """Heun's method in (x / alpha, sigma / alpha), to the letter (Karras et al. 2022, Alg. 1 and 2).

    Second order, two calls a step. The last step, and one from alpha = 0, where the slope has no value, are
    Euler's: one call. Made for `grids.karras`. Raises UserError for churn without `noise`.
    """
    for t, s in pairwise(times):
        if churn is not None:
            x, t = churn(x, t, schedule, noise=given(noise, "churn"), steps=len(times) - 1)
        x0 = denoise(x, t)
        fall = noise_ratio(schedule, t) / noise_ratio(schedule, s)
        if fall.isfinite():  # not where alpha = 0 at t, nor where sigma = 0 at s
            # the mean of both slopes, written in x0, so that no division by sigma = 0 occurs at the end
            x0 = x0 + fall / 2 * (denoise(step(x, x0, t, s, schedule), s) - x0)
        x = step(x, x0, t, s, schedule)
    return x


def heun(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Heun's method on the probability flow (Karras et al. 2022, Alg. 1), second order, two calls a step.

    It averages two x0 instead of two slopes in (x / alpha, sigma / alpha), which has no value at alpha = 0.
    The last step is Euler's: one call.
    """
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        if s > 0:  # at s = 0 the second call would see a clean picture, which no network was trained on
            x0 = (x0 + denoise(step(x, x0, t, s, schedule), s)) / 2
        x = step(x, x0, t, s, schedule)
    return x
