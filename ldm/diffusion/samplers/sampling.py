"""A sampler with its grid and number of steps, as conf/sampler/*.yaml builds it."""

from dataclasses import dataclass

from ldm.diffusion import Denoiser, Grid, Noise, Sampler, Schedule
from ldm.diffusion.samplers.update import State


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """A sampler with its grid and number of steps: what conf/sampler/*.yaml builds."""

    method: Sampler
    grid: Grid
    steps: int

    def __call__(
        self, denoise: Denoiser, schedule: Schedule, x: State, *, noise: Noise | None = None
    ) -> State:
        times = self.grid(self.steps, schedule=schedule)
        return self.method(denoise, schedule, x, times, noise=noise)
