"""Samplers: from noise at times[0] to a picture at t = 0, seeing only a denoiser and a schedule.

Coefficients are float64 whatever the state; the state has the dtype of the x that is passed in, and float64
is the better choice (Karras et al. keep it so; the network is given float32 by `Process.denoiser`). Every
update is written in x0, so that a start at alpha = 0 and an end at sigma = 0 need no special care.

Orders hold in the steps before the last; down to t = 0 in even steps the second order is h^2 log(1/h), and
first on DDPM tables, whose sigma^2 grows linearly from 0: there the step to 0 rules the error.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion import Denoiser, Grid, Noise, Sampler, Schedule

State = Float[Tensor, "b *shape"]
Time = Float[Tensor, ""]
Times = Float[Tensor, " steps_and_end"]


def step(x: State, x0: State, t: Time, s: Time, schedule: Schedule) -> State:
    """x at time s if x0 is right: the noise of x_t is kept and rescaled (Song et al. 2021, Eq. 12)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> State:
    """DDIM (Song et al. 2021, Eq. 12 and 16); eta = 0 is Euler on the probability flow and draws no noise.

    eta is the share of DDPM's noise put back at each step. Raises ValueError outside [0, 1], and when
    eta > 0 comes without `noise`.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"{eta=} is outside [0, 1]: 0 adds no noise, 1 is DDPM")
    if eta > 0 and noise is None:
        raise ValueError(f"{eta=} puts fresh noise in at each step: pass noise=, or set eta to 0")
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        # standard deviation of x_s given x_t and x0 in the forward process
        posterior = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0).sqrt() * sigma_s / sigma_t
        fresh = eta * posterior
        x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * (x - alpha_t * x0) / sigma_t
        if noise is not None and fresh > 0:
            x = x + fresh * noise(x)
    return x


def ddpm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, Eq. 7), which is DDIM at eta = 1."""
    return ddim(denoise, schedule, x, times, noise=noise, eta=1.0)


def heun(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Heun's method on the probability flow (Karras et al. 2022, Alg. 1), second order, two calls a step.

    It averages two x0 instead of two slopes in (x / alpha, sigma / alpha), which has no value at alpha = 0.
    The last step is Euler's: one call.
    """
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        if s > 0:
            x0 = (x0 + denoise(step(x, x0, t, s, schedule), s)) / 2
        x = step(x, x0, t, s, schedule)
    return x


def dpmpp_2m(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): second order by extrapolating x0 in log(alpha / sigma).

    One call a step. First order in the step to 0 and in the two after a start at alpha = 0, where the
    logarithm is infinite.
    """
    previous, width_before = x, torch.full((), torch.inf, dtype=times.dtype)
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        width = log_signal_ratio(schedule, s) - log_signal_ratio(schedule, t)
        lean = width / (2 * width_before) if width.isfinite() else torch.zeros_like(width)
        x = step(x, x0 + lean * (x0 - previous), t, s, schedule)
        previous, width_before = x0, width
    return x


def log_signal_ratio(schedule: Schedule, t: Time) -> Time:
    """lambda = log(alpha / sigma): -inf at a zero-SNR end, +inf at t = 0."""
    alpha, sigma = schedule(t)
    return alpha.log() - sigma.log()


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler with its grid and number of steps: what conf/sampler/*.yaml builds."""

    method: Sampler
    grid: Grid
    steps: int

    def __call__(
        self, denoise: Denoiser, schedule: Schedule, x: State, *, noise: Noise | None = None
    ) -> State:
        return self.method(denoise, schedule, x, self.grid(self.steps), noise=noise)
