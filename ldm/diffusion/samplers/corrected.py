"""UniPC: a multistep predictor whose result the next call of the network corrects, at no extra cost."""

from itertools import pairwise

from ldm import UserError
from ldm.diffusion import Denoiser, Noise, Schedule
from ldm.diffusion.samplers.update import State, Time, Times, log_signal_ratio, mean_over_step, step


def unipc(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    order: int = 2,
) -> State:
    """UniPC-p in x0 with B(h) = e^h - 1 (Zhao et al. 2023, Alg. 1 and 2), of order p + 1, one call a step.

    Each x0 first corrects the step that led to it, then joins the polynomial that predicts the next. Starts
    and ends in lower orders; a step from alpha = 0 or to 0 is first order and is not corrected.

    Raises UserError for an order other than 1, 2 or 3.
    """
    if order not in (1, 2, 3):
        raise UserError(f"{order=} of UniPC is not 1, 2 or 3")
    steps = len(times) - 1
    past: list[tuple[Time, State]] = []  # (lambda, x0), newest first: what the last step was predicted from
    start, start_time = x, times[0]
    for number, (t, s) in enumerate(pairwise(times)):
        x0, now = denoise(x, t), log_signal_ratio(schedule, t)
        if past:
            x = step(start, _mean([(now, x0), *past], past[0][0], now), start_time, t, schedule)
        past = [(now, x0), *past][: min(order, steps - number)] if now.isfinite() else []
        start, start_time = x, t
        x = step(x, _mean(past, now, log_signal_ratio(schedule, s)) if past else x0, t, s, schedule)
    return x


def _mean(known: list[tuple[Time, State]], start: Time, end: Time) -> State:
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
    return mean_over_step([x0 for _, x0 in known], places, width)
