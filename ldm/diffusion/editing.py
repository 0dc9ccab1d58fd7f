"""Starting from a picture: noised part of the way, and kept where nothing is to be redrawn."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm import UserError
from ldm.diffusion import Denoiser, Schedule

State = Float[Tensor, "b *shape"]
Time = Float[Tensor, ""]


def from_strength(times: Float[Tensor, " times"], strength: float) -> Float[Tensor, " rest"]:
    """The end of a grid, from the time nearest to `strength` on (SDEdit's t_0: Meng et al. 2022, Alg. 1).

    The grid is cut and not made anew, so every sampler takes it and visits the times that it always visits.
    Strength 1 is the whole grid; 0 is its last time alone, from which there is nothing to sample.

    Raises UserError for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:
        raise UserError(f"{strength=} is outside [0, 1]: 0 keeps the picture, 1 draws it anew")
    return times[(times - strength).abs().argmin() :]


def noised(x0: State, noise: State, t: Time, schedule: Schedule) -> State:
    """x_t = alpha * x0 + sigma * noise."""
    alpha, sigma = schedule(t)
    return alpha * x0 + sigma * noise


def keeping(denoise: Denoiser, known: State, redrawn: Bool[Tensor, "b *shape"]) -> Denoiser:
    """A denoiser whose x0 is `known` outside of `redrawn`: blended latent diffusion (Avrahami et al. 2023).

    There the paper puts the known latent, noised to the step's time, in place of x after each step. A sampler
    that starts from `noised(known, ...)` and is told the true x0 comes to the same by itself: its updates are
    linear in x and the x0 seen so far, so x stays alpha * known + sigma * noise, with the picture's own noise
    or what the sampler puts in. No sampler knows of masks, and those that extrapolate x0 over several steps
    never meet the jump that a replaced x would put into their past.
    """

    def blended(x: State, t: Time) -> State:
        return torch.where(redrawn, denoise(x, t), known)

    return blended
