"""Embeddings of times and of places."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MAX_PERIOD = 10_000.0  # Vaswani et al. 2017, sec. 3.5
AXIAL_PERIOD = 100.0  # Heo et al. 2024, sec. 3.2: a picture has tens of places along an axis, not thousands


def sinusoidal(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Cosines, then sines, of ``t`` at ``width / 2`` frequencies from 1 down to 1 / 10,000 (Ho et al. 2020).

    Times of the order of 0 to 1000 are what these frequencies resolve.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Sinusoids of a time through two layers."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(channels, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        waves = sinusoidal(t, self.channels).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(waves)))


def axial_angles(
    height: int, width: int, head_dim: int, *, device: torch.device
) -> Float[Tensor, "places half"]:
    """Angles of the places of a grid, row by row: half of them grow with the row, half with the column.

    Rotary embedding along two axes (Heo et al. 2024, eq. 7). Only differences of places matter, so a network
    takes grids of any size. ``head_dim`` must be a multiple of 4.
    """
    exponents = torch.arange(head_dim // 4, dtype=torch.float32, device=device) / (head_dim // 4)
    frequencies = torch.exp(-math.log(AXIAL_PERIOD) * exponents)
    down = torch.arange(height, device=device).repeat_interleave(width)
    right = torch.arange(width, device=device).repeat(height)
    return torch.cat([place[:, None] * frequencies for place in (down, right)], dim=1)


def rotate(x: Float[Tensor, "b h n d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "b h n d"]:
    """Features i and i + d/2 of each token turned by its i-th angle (Su et al. 2021, eq. 34), in float32."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
