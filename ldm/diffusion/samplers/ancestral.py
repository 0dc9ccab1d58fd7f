"""DDIM and the ancestral samplers, which are DDIM with the forward process's own noise put back."""

from itertools import pairwise

from ldm.diffusion import Denoiser, Noise, Schedule
from ldm.diffusion.samplers.update import State, Times, check_eta, given


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> State:
    """DDIM (Song et al. 2021, Eq. 12 and 16); eta = 0 is Euler on the probability flow and draws no noise.

    eta is the share of DDPM's noise put back at each step. Raises UserError outside [0, 1], and when
    eta > 0 comes without `noise`.
    """
    check_eta(eta)
    if eta > 0:
        noise = given(noise, f"{eta=}")
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        # standard deviation of x_s given x_t and x0 in the forward process
        posterior = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0).sqrt() * sigma_s / sigma_t
        fresh = eta * posterior
        x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * (x - alpha_t * x0) / sigma_t
        if noise is not None and fresh > 0:
            x = x + fresh * noise(x)
    return x


def ddpm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Ancestral sampling with the posterior variance (Ho et al. 2020, Eq. 7), which is DDIM at eta = 1."""
    return ddim(denoise, schedule, x, times, noise=noise, eta=1.0)


def euler_ancestral(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    eta: float = 1.0,
) -> State:
    """Euler's step to less noise than asked for, then fresh noise up to it (k-diffusion's `euler_ancestral`).

    In (x / alpha, sigma / alpha) that is DDIM with the same eta, to the last term: two names of one sampler.
    Raises UserError as `ddim` does.
    """
    return ddim(denoise, schedule, x, times, noise=noise, eta=eta)
