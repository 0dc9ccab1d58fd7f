"""Densities of training times: even draws in [0, 1) -> times in [0, 1]; the caller owns the draws."""

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.diffusion import grids


def uniform(draws: Float[Tensor, " b"], *, shift: float = 1.0) -> Float[Tensor, " b"]:
    """All times alike, then moved towards noise by `shift` (see `grids.shifted`)."""
    return grids.shifted(draws, shift)


def table_entries(draws: Float[Tensor, " b"], *, num_steps: int = 1000) -> Float[Tensor, " b"]:
    """The `num_steps` entries of a DDPM table alike, as pretrained Stable Diffusion networks know them."""
    return ((draws * num_steps).floor() + 1).clamp(max=num_steps) / num_steps


def logit_normal(
    draws: Float[Tensor, " b"], *, mean: float = 0.0, std: float = 1.0, shift: float = 1.0
) -> Float[Tensor, " b"]:
    """sigmoid of a normal with this mean and std: middle times more often (Esser et al. 2024, Eq. 19)."""
    return grids.shifted(torch.sigmoid(mean + std * torch.special.ndtri(draws)), shift)
