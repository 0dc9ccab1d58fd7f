"""PNDM: Adams and Bashforth's multistep formulas on the noise, carried over by DDIM's step."""

from itertools import pairwise

from ldm.diffusion import Denoiser, Noise, Schedule
from ldm.diffusion.samplers.update import State, Time, Times, combined, step

ADAMS_BASHFORTH = {  # weights of the noise now, one step ago, ... (Liu et al. 2022, Eq. 12)
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def pndm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """PNDM's linear multistep (Liu et al. 2022, Eq. 9 and 12) as Stable Diffusion runs it, known as PLMS.

    Made for steps even in t; second order. The first step is Heun's, so that n steps are n + 1 calls; from
    alpha = 0, where the noise doesn't tell x0, it is DDIM's, with one.
    """
    past: list[State] = []  # the noise in x, newest first
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        eps = _noise_in(x, x0, t, schedule)
        past = [eps, *past][:4]
        if len(past) > 1:
            mixed = combined(ADAMS_BASHFORTH[len(past)], past)
        elif s > 0 and schedule(t)[0] > 0:
            ahead = step(x, x0, t, s, schedule)
            mixed = (eps + _noise_in(ahead, denoise(ahead, s), s, schedule)) / 2
        else:
            mixed = eps
        alpha, sigma = schedule(t)
        if alpha > 0:
            x0 = x0 + sigma / alpha * (eps - mixed)
        x = step(x, x0, t, s, schedule)
    return x


def _noise_in(x: State, x0: State, t: Time, schedule: Schedule) -> State:
    """eps of x = alpha * x0 + sigma * eps."""
    alpha, sigma = schedule(t)
    return (x - alpha * x0) / sigma
