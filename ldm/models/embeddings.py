"""Embeddings of scalars."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

MAX_PERIOD = 10_000.0  # Vaswani et al. 2017, sec. 3.5


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
