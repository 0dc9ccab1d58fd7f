"""Samplers: from noise at times[0] to a picture at t = 0, seeing only a denoiser and a schedule.

Coefficients are float64; the state has the dtype of the x that is passed in. float64 is the better choice, as
in Karras et al.'s code; `Process.denoiser` gives the network float32. Every update is written in x0, so that
a start at alpha = 0 and an end at sigma = 0 need no special care.

Orders hold in the steps before the last, between times where log(alpha / sigma) is finite. Down to t = 0 in
even steps the second order is h^2 log(1/h), and first on DDPM tables, whose sigma^2 grows linearly from 0:
there the step to 0 dominates the error. A start at alpha = 0 is first order in its step, so that no method
has more than second order from there.

Sources: one_step (DDIM, DDPM, ancestral Euler, LCM), runge_kutta (Euler and Heun with churn) and multistep
(DPM-Solver++, UniPC, PNDM).
"""

from dataclasses import dataclass

from ldm import UserError
from ldm.diffusion import Denoiser, Grid, Noise, Sampler, Schedule, State, Times
from ldm.diffusion.samplers.multistep import dpmpp_2m, dpmpp_2m_sde, dpmpp_3m, pndm, unipc
from ldm.diffusion.samplers.one_step import ddim, ddpm, euler_ancestral, lcm, step
from ldm.diffusion.samplers.runge_kutta import Churn, edm, euler, heun

__all__ = [
    "Churn",
    "Sampling",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m",
    "edm",
    "euler",
    "euler_ancestral",
    "heun",
    "lcm",
    "pndm",
    "step",
    "unipc",
]

MAX_STEPS = 10_000  # the slowest methods take a thousand; more are a slip, or a forged file


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler with its grid and number of steps: what conf/sampler/*.yaml builds.

    Raises UserError for fewer than 1 or more than `MAX_STEPS` steps, or a method or grid that is no callable.
    """

    method: Sampler
    grid: Grid
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps={self.steps} of a sampler must lie between 1 and {MAX_STEPS}")
        # a config without `_partial_: true` would build what the function returns
        for name in ("method", "grid"):
            if not callable(getattr(self, name)):
                raise UserError(f"{name}={getattr(self, name)!r} of a sampler can't be called")

    def __call__(
        self,
        denoise: Denoiser,
        schedule: Schedule,
        x: State,
        *,
        noise: Noise | None = None,
        times: Times | None = None,
    ) -> State:
        """x0 from an x at the grid's first timestep, or at the first of `times`, a part of the grid."""
        times = self.times(schedule) if times is None else times
        return self.method(denoise, schedule, x, times, noise=noise)

    def times(self, schedule: Schedule) -> Times:
        """The timesteps of the whole grid."""
        return self.grid(self.steps, schedule=schedule)
