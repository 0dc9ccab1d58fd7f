"""Parts that several networks share: convolution blocks, embeddings, activation checkpointing."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm import UserError

MAX_PERIOD = 10_000.0  # Vaswani et al. 2017, sec. 3.5
AXIAL_PERIOD = 100.0  # Heo et al. 2024, sec. 3.2: a picture has tens of places along an axis, not thousands


def level_widths(channels: int, multipliers: Sequence[float | int], *, norm_groups: int) -> list[int]:
    """Channel width of each level; a multiplier may be a fraction as long as the width is whole.

    Raises UserError where a width is not a whole multiple of ``norm_groups``.
    """
    # checked here: nn.GroupNorm's own message names neither the key nor the level
    if not multipliers:
        raise UserError("multipliers is empty; give one number per level, for example [1, 2, 4, 4].")
    for multiplier in multipliers:
        width = channels * multiplier
        if width <= 0 or width % norm_groups:
            raise UserError(
                f"channels={channels} times multiplier {multiplier} gives width {width:g}, not a positive "
                f"multiple of norm_groups={norm_groups}; change channels or multipliers."
            )
    return [int(channels * multiplier) for multiplier in multipliers]


def check_divides(latents: Float[Tensor, "b c h w"], factor: int) -> None:
    """Raises UserError for latents that a backbone can't cut into parts of `factor` a side."""
    height, width = latents.shape[-2:]
    if height % factor or width % factor:
        raise UserError(f"{height}x{width} latents do not divide by {factor}; choose another picture size.")


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions around a time shift, plus a shortcut (Rombach et al. 2022)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm_groups: int = 32,
        eps: float = 1e-6,
        time_width: int = 0,
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(norm_groups, in_channels, eps=eps)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, out_channels) if time_width else None
        self.norm_out = nn.GroupNorm(norm_groups, out_channels, eps=eps)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        # a 1x1 convolution where the width changes, as in Stable Diffusion
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c_in h w"], time: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c_out h w"]:
        """The block's output; `time` is the embedded timestep after SiLU, shared by all blocks."""
        h = self.conv_in(F.silu(self.norm_in(x)))
        if self.time is not None and time is not None:
            h = h + self.time(time)[:, :, None, None]  # the caller has applied SiLU, once for all blocks
        return self.shortcut(x) + self.conv_out(F.silu(self.norm_out(h)))


class Downsample(nn.Module):
    """Stride-2 convolution, (b, c, h, w) to (b, c, h / 2, w / 2).

    As in Stable Diffusion, the autoencoder pads right and bottom alone, the U-Net all around.
    """

    def __init__(self, channels: int, *, pad_all_around: bool) -> None:
        super().__init__()
        self.pad_all_around = pad_all_around
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(pad_all_around))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Half the resolution, rounded up if padded all around."""
        return self.conv(x if self.pad_all_around else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Twice the resolution."""
        # not a transposed convolution, which leaves a checkerboard in pictures (Odena et al. 2016)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def zero(layer: nn.Conv2d | nn.Linear | nn.LayerNorm) -> None:
    """Sets weights and bias to zero: a branch that ends in this layer starts by adding nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def apply(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """The module's output, with activation checkpointing (Chen et al. 2016) if ``recompute``.

    Then only its inputs are kept, and its forward pass is computed again in the backward pass.
    """
    if recompute and torch.is_grad_enabled():
        # the reentrant variant would lose the gradients of a module none of whose inputs requires one
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)


def sinusoidal(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Cosines, then sines, of ``t`` at ``width / 2`` frequencies from 1 down to 1 / 10,000 (Ho et al. 2020).

    These frequencies resolve timesteps of about 0 to 1000. In float32: bfloat16 would round 999 to 1000.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponents)[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)  # cosines first: Stable Diffusion's weights


class TimeEmbedding(nn.Module):
    """Two linear layers over the sinusoids of a timestep (Ho et al. 2020, app. B)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.hidden = nn.Linear(channels, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Float[Tensor, " b"]) -> Float[Tensor, "b width"]:
        """One vector per timestep."""
        waves = sinusoidal(t, self.channels).to(self.hidden.weight.dtype)
        return self.out(F.silu(self.hidden(waves)))


def axial_angles(
    height: int, width: int, head_dim: int, *, device: torch.device
) -> Float[Tensor, "places half"]:
    """Rotation angles of the places of a grid, row by row: half grow with the row, half with the column.

    Rotary embedding along two axes (Heo et al. 2024, eq. 7). Only differences of places matter, so a network
    takes grids of any size. ``head_dim`` must be a multiple of 4.
    """
    exponents = torch.arange(head_dim // 4, dtype=torch.float32, device=device) / (head_dim // 4)
    # computed at every call, for whatever size comes: it is nothing beside one attention
    frequencies = torch.exp(-math.log(AXIAL_PERIOD) * exponents)
    down = torch.arange(height, device=device).repeat_interleave(width)
    right = torch.arange(width, device=device).repeat(height)
    return torch.cat([place[:, None] * frequencies for place in (down, right)], dim=1)


def rotate(x: Float[Tensor, "b h n d"], angles: Float[Tensor, "n half"]) -> Float[Tensor, "b h n d"]:
    """Features i and i + d/2 of each token turned by its i-th angle (Su et al. 2021, eq. 34), in float32."""
    # halves, not neighbours, as pairs: two slices in place of a strided gather
    first, second = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
