"""A sampler with its grid and number of steps, as conf/sampler/*.yaml builds it."""

from dataclasses import dataclass

from ldm import UserError
from ldm.diffusion import Denoiser, Grid, Noise, Sampler, Schedule
from ldm.diffusion.samplers.update import State, Times

MAX_STEPS = 10_000  # the slowest methods take a thousand; more are a slip, or a forged file


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler with its grid and number of steps: what conf/sampler/*.yaml builds.

    Raises:
        UserError: fewer than 1 or more than `MAX_STEPS` steps, or a method or grid that can't be called.
    """

    method: Sampler
    grid: Grid
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise UserError(f"steps={self.steps} of a sampler must lie between 1 and {MAX_STEPS}")
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
        """x0 of an x at the grid's first time, or at the first of `times`, a part of the grid."""
        times = self.times(schedule) if times is None else times
        return self.method(denoise, schedule, x, times, noise=noise)

    def times(self, schedule: Schedule) -> Times:
        """The times of the whole grid."""
        return self.grid(self.steps, schedule=schedule)
