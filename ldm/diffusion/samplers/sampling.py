"""A sampler with its grid and number of steps, as conf/sampler/*.yaml builds it."""

from dataclasses import dataclass

from ldm.diffusion import Denoiser, Grid, Noise, Sampler, Schedule
from ldm.diffusion.samplers.update import State, Times


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler with its grid and number of steps: what conf/sampler/*.yaml builds."""

    method: Sampler
    grid: Grid
    steps: int

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
