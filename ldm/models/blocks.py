"""Convolutional parts shared by the autoencoder and the U-Net."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError


def level_widths(channels: int, multipliers: Sequence[float | int], *, norm_groups: int) -> list[int]:
    """Channel width of each level; a multiplier may be a fraction as long as the width is whole.

    Raises UserError where a width is not a whole multiple of ``norm_groups``.
    """
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
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(
        self, x: Float[Tensor, "b c_in h w"], time: Float[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "b c_out h w"]:
        h = self.conv_in(F.silu(self.norm_in(x)))
        if self.time is not None and time is not None:
            h = h + self.time(time)[:, :, None, None]  # the caller has applied SiLU, once for all blocks
        return self.shortcut(x) + self.conv_out(F.silu(self.norm_out(h)))


class Downsample(nn.Module):
    """Stride-2 convolution; the autoencoder pads right and bottom alone, the U-Net all around."""

    def __init__(self, channels: int, *, pad_all_around: bool) -> None:
        super().__init__()
        self.pad_all_around = pad_all_around
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=int(pad_all_around))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(x if self.pad_all_around else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def zero(layer: nn.Conv2d | nn.Linear | nn.LayerNorm) -> None:
    """Set weights and bias to zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
