"""DPM-Solver++: exponential integrators that remember the x0 of the steps before."""

from itertools import pairwise

import torch

from ldm.diffusion import Denoiser, Noise, Schedule
from ldm.diffusion.samplers.update import State, Time, Times, check_eta, given, log_signal_ratio, step


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
        x = step(x, x0 + _lean(width, width_before) * (x0 - previous), t, s, schedule)
        previous, width_before = x0, width
    return x


def dpmpp_2m_sde(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
) -> State:
    """dpmpp_2m along the reverse diffusion instead of the flow (Lu et al. 2022, App. C, as SDE-DPM-Solver++).

    At eta = 1 it is DDPM with x0 extrapolated; at eta = 0 it is dpmpp_2m. In between the noise kept from x_t
    falls as (sigma / alpha)^(1 + eta). One call a step; the last step puts no noise in.

    Raises UserError for eta outside [0, 1], and when eta > 0 comes without `noise`.
    """
    check_eta(eta)
    previous, width_before = x, torch.full((), torch.inf, dtype=times.dtype)
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        width = log_signal_ratio(schedule, s) - log_signal_ratio(schedule, t)
        leant = x0 + _lean(width, width_before) * (x0 - previous)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        kept = (-eta * width).exp() if eta > 0 else torch.ones_like(width)
        x = alpha_s * leant + sigma_s * kept * (x - alpha_t * leant) / sigma_t
        fresh = sigma_s * (1 - kept**2).sqrt()
        if fresh > 0:
            x = x + fresh * given(noise, f"{eta=}")(x)
        previous, width_before = x0, width
    return x


def dpmpp_3m(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    curvature: float = 1.0,
) -> State:
    """DPM-Solver++(3M): x0 extrapolated by the parabola through the last three, one call a step.

    `curvature` is the share of the parabola's bend that is used. With 1 the integral is exact and the order
    third; 0.5 is what the authors' code, k-diffusion and diffusers compute, of second order. Starts with two
    steps of lower order; the step to 0 is first order and, of fewer than 15, the one before it second.
    """
    steps = len(times) - 1
    past: list[tuple[Time, State]] = []  # (lambda, x0), newest first
    for number, (t, s) in enumerate(pairwise(times)):
        x0, now = denoise(x, t), log_signal_ratio(schedule, t)
        width = log_signal_ratio(schedule, s) - now
        usable = past[:1] if steps < 15 and number == steps - 2 else past
        x = step(x, _extrapolated(x0, now, usable, width, curvature), t, s, schedule)
        past = [(now, x0), *past][:2] if now.isfinite() else []
    return x


def _lean(width: Time, width_before: Time) -> Time:
    """How far x0 is extrapolated, in units of its last change; not at all in a step of infinite width."""
    return width / (2 * width_before) if width.isfinite() else torch.zeros_like(width)


def _extrapolated(
    x0: State, now: Time, past: list[tuple[Time, State]], width: Time, curvature: float
) -> State:
    """The mean of x0 over the step, extrapolated from `past`."""
    if not past or not width.isfinite():
        return x0
    (before, x0_before), *older = past
    slope = (x0 - x0_before) / (now - before)
    if not older:
        return x0 + width / 2 * slope
    ((earlier, x0_earlier),) = older
    slope_before = (x0_before - x0_earlier) / (before - earlier)
    bend = (slope - slope_before) / (now - earlier)
    # means over the step, under the weight e^lambda, of the distance from its start and of its square
    whole = -torch.expm1(-width)
    first = width / whole - 1
    second = (width**2 - 2 * width + 2 * whole) / whole
    return x0 + first * (slope + (now - before) * bend) + curvature * second * bend
