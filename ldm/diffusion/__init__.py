"""Noising, denoising and sampling: the types and contracts that every file of this package uses.

Time t runs from 0 (clean) to 1 (noise); the path is always x_t = alpha * x0 + sigma * eps.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

# shapes in the signatures of samplers, guidances and schedules
State = Float[Tensor, "b *shape"]
Time = Float[Tensor, ""]  # on the CPU: a 0-d CPU tensor mixes with any device and costs no synchronisation
Times = Float[Tensor, " steps_and_end"]
PerTimestep = Float[Tensor, "*times"]  # a number for each timestep, however many there are

Schedule = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t -> (alpha, sigma), elementwise, in the dtype of t."""

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x, t) -> estimate of x0; x is a batch, t one 0-d timestep for all of it."""

Pair = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(x, t) -> the conditional and the unconditional (or weak) x0, in one network call if it can."""

Guidance = Callable[[Denoiser, Pair], Denoiser]
"""(conditional, pair) -> the denoiser that the sampler follows."""

Noise = Callable[[Tensor], Tensor]
"""x -> fresh standard normal noise shaped like x, for each picture from its own seed."""


@runtime_checkable
class Grid(Protocol):
    """(number of steps, schedule) -> steps + 1 falling float64 timesteps on the CPU, down to 0 by default."""

    def __call__(self, steps: int, /, *, schedule: Schedule) -> Tensor: ...


@runtime_checkable
class Sampler(Protocol):
    """(denoise, schedule, x, times) -> x0: follows the denoiser from times[0] down to times[-1].

    Every sampler takes `noise`, so that one call fits all; those without fresh noise ignore it.
    """

    def __call__(
        self, denoise: Denoiser, schedule: Schedule, x: Tensor, times: Tensor, *, noise: Noise | None = None
    ) -> Tensor: ...
