"""Sampling for networks distilled to jump to x0 at once."""

from itertools import pairwise

from ldm.diffusion import Denoiser, Noise, Schedule
from ldm.diffusion.samplers.update import State, Times, given


def lcm(
    denoise: Denoiser, schedule: Schedule, x: State, times: Times, *, noise: Noise | None = None
) -> State:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1; Luo et al. 2023): x0, new noise, x0, ...

    For 1 to 8 steps of a latent consistency model. Of any other denoiser it draws means, not samples: the
    fewer the steps the smoother. Raises UserError for more than one step without `noise`.
    """
    for t, s in pairwise(times):
        x0 = denoise(x, t)
        alpha, sigma = schedule(s)
        x = alpha * x0
        if sigma > 0:
            x = x + sigma * given(noise, "lcm")(x)
    return x
