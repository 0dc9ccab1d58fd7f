"""Multistep samplers, which extrapolate from earlier network outputs: DPM-Solver++, UniPC and PNDM."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch

from ldm import UserError
from ldm.diffusion import Denoiser, Noise, Schedule, State, Time, Times
from ldm.diffusion.samplers.one_step import check_eta, given, step
from ldm.diffusion.schedules import log_signal_ratio

ADAMS_BASHFORTH = {  # weights of the noise now, one step ago, ... (Liu et al. 2022, Eq. 12)
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def dpmpp_2m(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): second order by extrapolating x0 in log(alpha / sigma).

    One call per step. First order in the step to 0, and in the two after a start at alpha = 0: log(0).
    """
    return dpmpp_2m_sde(denoise, schedule, x, times, eta=0.0)


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
    falls as (sigma / alpha)^(1 + eta). One call per step; the last step adds no noise.

    Raises UserError for eta outside [0, 1], and when eta > 0 comes without `noise`.
    """
    check_eta(eta)
    # an infinite width before makes the first step first order
    previous, width_before = x, torch.full((), torch.inf, dtype=times.dtype)
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        width = log_signal_ratio(schedule, s) - log_signal_ratio(schedule, t)
        leant = x0 + _lean(width, width_before) * (x0 - previous)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        # at eta = 0 a width of infinity would make 0 * inf = NaN
        kept = (-eta * width).exp() if eta > 0 else torch.ones_like(width)
        x = alpha_s * leant + sigma_s * kept * (x - alpha_t * leant) / sigma_t
        fresh = sigma_s * (1 - kept**2).sqrt()
        if fresh > 0:  # else no call, which would advance the noise of every picture
            x = x + fresh * given(noise, f"{eta=}")(x)
        previous, width_before = x0, width
    return x


def _lean(width: Time, width_before: Time) -> Time:
    """How far x0 is extrapolated, in units of its last change; not at all in a step of infinite width."""
    return width / (2 * width_before) if width.isfinite() else torch.zeros_like(width)


def dpmpp_3m(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    curvature: float = 1.0,
) -> State:
    """DPM-Solver++(3M): x0 extrapolated by the parabola through the last three, one call per step.

    `curvature` is the share of the parabola's bend that is used. With 1 the integral is exact and the order
    third; 0.5 is what the authors' code, k-diffusion and diffusers compute, of second order. Starts with two
    steps of lower order; the step to 0 is first order and, of fewer than 15, the one before it second.
    """
    steps = len(times) - 1
    past: list[tuple[Time, State]] = []  # (lambda, x0), newest first; forgotten at alpha = 0: lambda is -inf
    for number, (t, s) in enumerate(pairwise(times)):
        x0, now = denoise(x, t), log_signal_ratio(schedule, t)
        width = log_signal_ratio(schedule, s) - now
        # few steps are wide ones, in which a parabola overshoots
        usable = past[:1] if steps < 15 and number == steps - 2 else past  # the authors' lower_order_final
        x = step(x, _extrapolated(x0, now, usable, width, curvature), t, s, schedule)
        past = [(now, x0), *past][:2] if now.isfinite() else []
    return x


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


def unipc(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    order: int = 2,
) -> State:
    """UniPC-p in x0 with B(h) = e^h - 1 (Zhao et al. 2023, Alg. 1 and 2), of order p + 1, one call per step.

    Each x0 first corrects the step that led to it, then joins the polynomial that predicts the next. Starts
    and ends in lower orders; a step from alpha = 0 or to 0 is first order and is not corrected.

    Raises UserError for an order other than 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise UserError(f"{order=} of UniPC is not 1, 2 or 3")
    steps = len(times) - 1
    # a step is corrected with the output that the next prediction needs anyway: no extra call
    past: list[tuple[Time, State]] = []  # (lambda, x0), newest first: what the last step was predicted from
    start, start_time = x, times[0]
    for number, (t, s) in enumerate(pairwise(times)):
        x0, now = denoise(x, t), log_signal_ratio(schedule, t)
        if past:
            x = step(start, _unipc_mean([(now, x0), *past], past[0][0], now), start_time, t, schedule)
        # the authors' lower_order_final: the last steps are the widest in lambda
        past = [(now, x0), *past][: min(order, steps - number)] if now.isfinite() else []
        start, start_time = x, t
        x = step(x, _unipc_mean(past, now, log_signal_ratio(schedule, s)) if past else x0, t, s, schedule)
    return x


def _unipc_mean(known: list[tuple[Time, State]], start: Time, end: Time) -> State:
    """The mean of x0 over the step from lambda = start to end, of the polynomial through what is known.

    A line is taken at the middle of the step, as in the paper (its a_1 = 1/2), not integrated.
    """
    (_, newest), *older = known
    width = end - start
    if not older or not width.isfinite():
        return newest
    if len(older) == 1:
        ((at, x0), (at_before, x0_before)) = known
        return x0 + ((start + end) / 2 - at) / (at - at_before) * (x0 - x0_before)
    places = [(at - start) / width for at, _ in known]
    return _mean_over_step([x0 for _, x0 in known], places, width)


def _mean_over_step(outputs: Sequence[State], places: Sequence[Time], width: Time) -> State:
    """The x0 that takes `step` exactly over a step in which x0 is a polynomial of lambda.

    The exact solution is `step` with the mean of x0 under the weight e^lambda (Lu et al. 2022, Eq. 9). The
    polynomial goes through `outputs`, which lie at `places`: lambda counted from the start of the step, in
    units of its finite `width`. As many of both, all places different.
    """
    integrals = [-torch.expm1(-width)]  # of e^lambda * place^k over the step, by parts
    for power in range(1, len(outputs)):
        integrals.append(1 - power / width * integrals[-1])
    # weights that give every such polynomial its exact mean: a Vandermonde system of at most 3 rows
    powers = torch.arange(len(outputs), dtype=width.dtype)[:, None]
    weights = torch.linalg.solve(torch.stack(list(places)) ** powers, torch.stack(integrals) / integrals[0])
    return _combined(weights, outputs)


def _combined(weights: Iterable[Time | float], outputs: Sequence[State]) -> State:
    """The sum of the outputs, each times its weight; as many of both, one at least."""
    total = torch.zeros_like(outputs[0])
    for weight, output in zip(weights, outputs, strict=True):
        total = total + weight * output
    return total


def pndm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """PNDM's linear multistep (Liu et al. 2022, Eq. 9 and 12) as Stable Diffusion runs it, known as PLMS.

    Made for steps even in t; second order. The first step is Heun's, so that n steps are n + 1 calls; from
    alpha = 0, where the noise does not determine x0, it is DDIM's, with one.
    """
    past: list[State] = []  # the noise in x, newest first
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        eps = _noise_in(x, x0, t, schedule)
        past = [eps, *past][:4]  # four values: the highest order that the paper uses
        if len(past) > 1:
            mixed = _combined(ADAMS_BASHFORTH[len(past)], past)
        elif s > 0 and schedule(t)[0] > 0:  # a first step has no past: Heun's, as Stable Diffusion starts
            ahead = step(x, x0, t, s, schedule)
            mixed = (eps + _noise_in(ahead, denoise(ahead, s), s, schedule)) / 2
        else:
            mixed = eps
        alpha, sigma = schedule(t)
        if alpha > 0:  # `step` takes an x0, and at alpha = 0 the noise implies none
            x0 = x0 + sigma / alpha * (eps - mixed)
        x = step(x, x0, t, s, schedule)
    return x


def _noise_in(x: State, x0: State, t: Time, schedule: Schedule) -> State:
    """eps of x = alpha * x0 + sigma * eps."""
    alpha, sigma = schedule(t)
    return (x - alpha * x0) / sigma
