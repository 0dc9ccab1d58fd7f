"""One-step samplers, without memory of earlier steps: DDIM, DDPM, ancestral Euler and LCM.

All samplers share `step`, the update from x_t and an estimate of x0 to x_s.
"""

from itertools import pairwise

from ldm import UserError
from ldm.diffusion import Denoiser, Noise, Schedule, State, Time, Times


def step(x: State, x0: State, t: Time, s: Time, schedule: Schedule) -> State:
    """x at time s if x0 is right: the noise of x_t is kept and rescaled (Song et al. 2021, Eq. 12)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    return alpha_s * x0 + sigma_s * (x - alpha_t * x0) / sigma_t


def ddim(
    denoise: Denoiser,
    schedule: Schedule,
    x: State,
    times: Times,
    *,
    noise: Noise | None = None,
    eta: float = 0.0,
) -> State:
    """DDIM (Song et al. 2021, Eq. 12 and 16); eta = 0 is Euler on the probability flow, without noise.

    eta is the share of DDPM's noise that is added at each step. Raises UserError outside [0, 1], and when
    eta > 0 comes without `noise`.
    """
    check_eta(eta)
    if eta > 0:  # before the first network call, which may take seconds
        noise = given(noise, f"{eta=}")
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
        # alpha_s is above 0: only the first timestep of a grid can lie at alpha = 0
        # standard deviation of x_s given x_t and x0 in the forward process; rounding may make its square < 0
        posterior = (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2).clamp(min=0).sqrt() * sigma_s / sigma_t
        fresh = eta * posterior
        x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * (x - alpha_t * x0) / sigma_t
        if noise is not None and fresh > 0:  # else no call, which would advance the noise of every picture
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


def lcm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1; Luo et al. 2023): x0, new noise, x0, ...

    For 1 to 8 steps of a latent consistency model. Any other denoiser gives means, not samples: the fewer
    the steps the smoother. Raises UserError for more than one step without `noise`.
    """
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        alpha, sigma = schedule(s)
        x = alpha * x0  # the old noise is dropped: a consistency model reads x0 under any
        if sigma > 0:  # the last step returns x0 itself
            x = x + sigma * given(noise, "lcm")(x)
    return x


def check_eta(eta: float) -> None:
    """Raises UserError for a share of fresh noise outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise UserError(f"{eta=} is outside [0, 1]: 0 adds no noise, 1 all that the reverse diffusion has")


def given(noise: Noise | None, sampler: str) -> Noise:
    """The noise that a sampler needs; raises UserError if there is none."""
    if noise is None:
        raise UserError(f"{sampler} adds fresh noise at each step: pass noise=")
    return noise
