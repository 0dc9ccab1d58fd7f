"""Grids: the timesteps that a sampler visits, steps + 1 of them in float64 on the CPU, decreasing to 0.

On the CPU even when x is on a GPU: a 0-d CPU time mixes with any device and costs no synchronisation.

Every grid takes the schedule, as `Sampling` passes it; those that are defined in t alone ignore it.
"""

import math

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ldm import UserError
from ldm.diffusion import PerTimestep, Schedule
from ldm.diffusion.schedules import noise_ratio, time_of_ratio

GridTimes = Float64[Tensor, " steps_and_end"]


def shifted(t: PerTimestep, shift: float) -> PerTimestep:
    """Timesteps moved towards noise when shift > 1, as large pictures want (Esser et al. 2024, Eq. 23).

    Raises UserError unless shift > 0.
    """
    if not shift > 0:
        raise UserError(f"timesteps moved by {shift=}: it must be above 0")
    # Esser et al. take sqrt(pixels / pixels at the training resolution) for shift
    return shift * t / (1 + (shift - 1) * t)


def uniform(
    steps: int, *, schedule: Schedule | None = None, shift: float = 1.0, first: float = 1.0
) -> GridTimes:
    """Even steps from `first` to 0, moved towards noise by `shift`.

    A `first` of 0.999 is where diffusers' flow schedulers begin, and keeps log(alpha / sigma) finite.

    Raises UserError unless 0 < first <= 1.
    """
    _check(steps)
    # by the map of the training timesteps, so that a network is sampled where it was trained
    if not 0 < first <= 1:
        raise UserError(f"even steps from {first=}: 0 < first <= 1 must hold")
    return shifted(torch.linspace(first, 0, steps + 1, dtype=torch.float64), shift)


def trailing(
    steps: int, *, schedule: Schedule | None = None, num_steps: int = 1000, clean: bool = True
) -> GridTimes:
    """Even steps from t = 1 rounded to a table of `num_steps`: every entry is one the network was trained at.

    The spacing to use with zero terminal SNR (Lin et al. 2023, Table 2). `clean` as in `leading`.
    """
    _check(steps, num_steps)
    counts = num_steps - torch.arange(steps, dtype=torch.float64) * (num_steps / steps)
    # Lin et al. round, and so do we: a time between two entries is one that the network never saw
    return _of_table(counts.round(), num_steps=num_steps, clean=clean)


def leading(
    steps: int,
    *,
    schedule: Schedule | None = None,
    num_steps: int = 1000,
    offset: int = 0,
    clean: bool = True,
) -> GridTimes:
    """Every (num_steps // steps)-th table entry counted from the clean end, then 0; starts below t = 1.

    What DDIM and Stable Diffusion 1 (offset 1) were published with; for comparisons, not for new models.
    Without `clean` the last time is the table's first entry instead of 0: Stable Diffusion 1 stops there, and
    diffusers calls it `set_alpha_to_one: false`.
    """
    _check(steps, num_steps)
    stride = num_steps // steps
    if (steps - 1) * stride + offset >= num_steps:
        raise UserError(f"{offset=} moves {steps} leading steps past a table of {num_steps}: lower it")
    # + 1: index i of a table of T steps sits at t = (i + 1) / T
    counts = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * stride + offset + 1
    return _of_table(counts, num_steps=num_steps, clean=clean)


def karras(
    steps: int, *, schedule: Schedule, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> GridTimes:
    """Timesteps whose sigma / alpha is spaced as a power law (Karras et al. 2022, Eq. 5), then 0.

    Levels that the schedule does not reach are cut to its end. Starts a little below t = 1 when the
    schedule ends in pure noise, where sigma / alpha has no limit.

    Raises UserError unless rho >= 0.1 and 0 < sigma_min <= sigma_max.
    """
    _check(steps)
    if not rho >= 0.1:  # far below, the powers of sigma overflow
        raise UserError(f"levels spaced by {rho=}: it must be at least 0.1")
    high = _reached(schedule, sigma_min, sigma_max)
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    levels = (high ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - high ** (1 / rho))) ** rho
    return _ending_clean(levels, schedule)


def exponential(
    steps: int, *, schedule: Schedule, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> GridTimes:
    """Timesteps between which sigma / alpha falls by one factor, then 0 (k-diffusion's `exponential`).

    Levels that the schedule does not reach are cut to its end.

    Raises UserError unless 0 < sigma_min <= sigma_max.
    """
    _check(steps)
    start, end = math.log(_reached(schedule, sigma_min, sigma_max)), math.log(sigma_min)
    return _ending_clean(torch.linspace(start, end, steps, dtype=torch.float64).exp(), schedule)


def log_snr(steps: int, *, schedule: Schedule, first: float = 0.999, last: float = 0.001) -> GridTimes:
    """Timesteps even in log SNR = 2 log(alpha / sigma) from `first` to `last`, then 0 (Lu et al. 2022).

    Between the same two levels it is `exponential`; given in t, it fits any schedule.

    Raises UserError unless 1 >= first > last > 0, and for first = 1 of a schedule that ends in pure noise.
    """
    _check(steps)
    if not 1 >= first > last > 0:
        raise UserError(f"log-SNR steps from {first=} to {last=}: 1 >= first > last > 0 must hold")
    # levels of this schedule, so that every schedule visits the same two times
    high, low = noise_ratio(schedule, torch.tensor([first, last], dtype=torch.float64)).tolist()
    if not math.isfinite(high):
        raise UserError(f"the log SNR at {first=} is not finite on this schedule: take a first below 1")
    return exponential(steps, schedule=schedule, sigma_min=low, sigma_max=high)


def from_strength(times: Float[Tensor, " times"], strength: float) -> Float[Tensor, " rest"]:
    """The end of a grid, from the timestep nearest to `strength` on (SDEdit's t_0: Meng et al. 2022, Alg. 1).

    The grid is cut and not made anew, so that a sampler visits the timesteps that it always visits. Strength
    1 is the whole grid; 0 is its last timestep alone, from which there is nothing to sample.

    Raises UserError for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"{strength=} is outside [0, 1]: 0 keeps the picture, 1 ignores it")
    return times[(times - strength).abs().argmin() :]


def _of_table(counts: Float64[Tensor, " steps"], *, num_steps: int, clean: bool) -> GridTimes:
    """The timesteps of table entries, the first of which counts 1; then 0, or that first one."""
    return torch.cat([counts, counts.new_full((1,), 0 if clean else 1)]) / num_steps


def _reached(schedule: Schedule, sigma_min: float, sigma_max: float) -> float:
    """`sigma_max`, or the schedule's largest sigma / alpha if that is lower."""
    # the ratio is infinite at a zero-SNR end, which every sigma_max cuts
    high = min(sigma_max, noise_ratio(schedule, torch.ones((), dtype=torch.float64)).item())
    if not 0 < sigma_min <= high:
        raise UserError(f"levels from {sigma_min=} to {high:g}: 0 < sigma_min <= sigma_max must hold")
    return high


def _ending_clean(levels: Float64[Tensor, " steps"], schedule: Schedule) -> GridTimes:
    """The timesteps of these sigma / alpha, then 0."""
    times = time_of_ratio(schedule, levels)
    # a network is not asked at t = 0: it is only where the last step ends
    return torch.cat([times, times.new_zeros(1)])


def _check(steps: int, limit: int | None = None) -> None:
    if steps < 1 or (limit is not None and steps > limit):
        allowed = "at least 1" if limit is None else f"between 1 and {limit}"
        raise UserError(f"{steps=} sampling steps asked for: the number must be {allowed}")
