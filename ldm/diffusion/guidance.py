"""Guidance: a denoiser made of a conditional and an unconditional one; options are bound by the config.

Mixing x0 is the same as mixing eps, v or velocities: at a given (x, t) each is a linear function of x0.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion import Denoiser, Guidance

State = Float[Tensor, "b *shape"]
Time = Float[Tensor, ""]


def conditional(cond: Denoiser, uncond: Denoiser) -> Denoiser:
    """No guidance: the conditional denoiser alone."""
    return cond


def cfg(cond: Denoiser, uncond: Denoiser, *, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, Eq. 6, scale = 1 + w); at scale 1 only cond is called."""
    if scale == 1:
        return cond

    def denoise(x: State, t: Time) -> State:
        return torch.lerp(uncond(x, t), cond(x, t), scale)

    return denoise


def cfg_rescale(cond: Denoiser, uncond: Denoiser, *, scale: float, phi: float = 0.7) -> Denoiser:
    """cfg with each picture's contrast brought back to the conditional one's (Lin et al. 2023, Eq. 15-16).

    phi is the share of the correction, 0 to 1. The standard deviation is taken of x0, over one picture.
    """
    if scale == 1:
        return cond

    def denoise(x: State, t: Time) -> State:
        unguided = cond(x, t)
        guided = torch.lerp(uncond(x, t), unguided, scale)
        axes = tuple(range(1, x.ndim))
        restored = unguided.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
        return guided * (1 - phi + phi * restored)

    return denoise


def interval(cond: Denoiser, uncond: Denoiser, *, within: Guidance, low: float, high: float) -> Denoiser:
    """The guidance `within` at times low < t <= high, and cond alone elsewhere (Kynkäänniemi et al. 2024).

    Outside the interval uncond is not called, which halves the cost there.

    Raises ValueError for an empty interval.
    """
    if not low < high:
        raise ValueError(f"guidance interval from {low} to {high} is empty: low must be below high")
    guided = within(cond, uncond)

    def denoise(x: State, t: Time) -> State:
        return guided(x, t) if low < t <= high else cond(x, t)

    return denoise
