"""Tokenizers of strided convolutions: CogView's of one level, and the two levels of VQ-VAE-2.

Razavi et al. 2019, sec. 3.1, in the layers of Sonnet's and rosinality's code; Ding et al. 2021, sec. 2.2.
"""

from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.picture_tokenizers import CodeLevel, OneLevel, PictureTokenizer, Quantizer, grid_of
from ldm.models.quantizers import Draw, Quantized

FINE, COARSE = 4, 8  # pixels of a side that become one code of the bottom and of the top level


class PlainEncoder(nn.Sequential):
    """A strided convolution for every halving, ReLU after each, and a 1x1 convolution to vectors."""

    def __init__(self, channels: int, dim: int, *, halvings: int) -> None:
        steps = pairwise([3, *[channels] * halvings])
        layers = [(nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()) for before, after in steps]
        super().__init__(*chain.from_iterable(layers), nn.Conv2d(channels, dim, 1))


class PlainDecoder(nn.Module):
    """The mirror of that: transposed convolutions, and a 1x1 convolution to colours."""

    def __init__(self, channels: int, dim: int, *, halvings: int) -> None:
        super().__init__()
        steps = pairwise([dim, *[channels] * halvings])
        layers = [
            (nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()) for before, after in steps
        ]
        self.layers = nn.Sequential(*chain.from_iterable(layers))
        self.conv_out = nn.Conv2d(channels, 3, 1)

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of the vectors of codes."""
        return self.conv_out(self.layers(vectors))


class PlainTokenizer(OneLevel):
    """CogView's tokenizer: strided convolutions of one width, no residual blocks.

    Args:
        size: side of the pictures in pixels.
        channels: of all layers between.
        halvings: of the resolution.
        quantizer: features to codes.
    """

    def __init__(self, *, size: int, channels: int, halvings: int, quantizer: nn.Module) -> None:
        dim = int(quantizer.dim)  # type: ignore[arg-type]
        super().__init__(
            encoder=PlainEncoder(channels, dim, halvings=halvings),
            quantizer=quantizer,
            decoder=PlainDecoder(channels, dim, halvings=halvings),
            size=size,
            factor=2**halvings,
        )


class Residual(nn.Module):
    """ReLU and convolution twice, 3x3 and 1x1, added to the input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The block's output."""
        return x + self.conv_out(F.relu(self.conv_in(F.relu(x))))


class StridedEncoder(nn.Module):
    """Strided convolutions, a 3x3 one, residual blocks, ReLU."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, *, blocks: int, hidden: int) -> None:
        super().__init__()
        steps = pairwise([inputs, *widths])
        self.halvings = nn.ModuleList(nn.Conv2d(*each, 4, stride=2, padding=1) for each in steps)
        self.conv = nn.Conv2d(widths[-1], outputs, 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(outputs, hidden) for _ in range(blocks)))

    def forward(self, x: Float[Tensor, "b c_in H W"]) -> Float[Tensor, "b c_out h w"]:
        """Features at a half of the resolution for every width."""
        for layer in self.halvings:
            x = F.relu(layer(x))
        return F.relu(self.blocks(self.conv(x)))


class StridedDecoder(nn.Module):
    """A 3x3 convolution, residual blocks, transposed convolutions."""

    def __init__(self, inputs: int, widths: Sequence[int], outputs: int, *, blocks: int, hidden: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.blocks = nn.Sequential(*(Residual(widths[0], hidden) for _ in range(blocks)))
        double: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
        self.doublings = nn.ModuleList(nn.ConvTranspose2d(*each, **double) for each in pairwise(widths))
        self.conv_out = nn.ConvTranspose2d(widths[-1], outputs, **double)

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out H W"]:
        """Features or pictures at twice the resolution for every width."""
        x = F.relu(self.blocks(self.conv(x)))
        for layer in self.doublings:
            x = F.relu(layer(x))
        return self.conv_out(x)


class TwoLevelTokenizer(PictureTokenizer):
    """VQ-VAE-2's two levels: the bottom is quantized from its own features and the decoded top.

    Args:
        size: side of the pictures in pixels, a multiple of 8.
        channels: of the features; half as many before the second halving.
        residual_blocks, residual_channels: of each encoder and decoder.
        top, bottom: quantizers of one `dim`, for the coarse and the fine level.

    Raises UserError on sizes that do not fit.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        residual_blocks: int,
        residual_channels: int,
        top: nn.Module,
        bottom: nn.Module,
    ) -> None:
        super().__init__()
        self.size, self.factor, self.top, self.bottom = size, FINE, top, bottom
        dim, other = (each.dim for each in self.quantizers())
        if dim != other or channels % 2:
            raise UserError(
                f"image_tokenizer: {channels=} must be even, and top.dim={dim} that of bottom, {other}"
            )
        shared = {"blocks": residual_blocks, "hidden": residual_channels}
        self.encoder_bottom = StridedEncoder(3, [channels // 2, channels], channels, **shared)
        self.encoder_top = StridedEncoder(channels, [channels // 2], channels, **shared)
        self.to_top = nn.Conv2d(channels, dim, 1)
        self.decoder_top = StridedDecoder(dim, [channels], dim, **shared)
        self.to_bottom = nn.Conv2d(dim + channels, dim, 1)
        self.upsample_top = nn.ConvTranspose2d(dim, dim, 4, stride=2, padding=1)
        self.decoder = StridedDecoder(2 * dim, [channels, channels // 2], 3, **shared)
        grids = [grid_of(size, factor) for factor in (COARSE, FINE)]
        sizes = [each.num_codes for each in self.quantizers()]
        self.levels = tuple(map(CodeLevel, grids, sizes))

    def quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizers of top and bottom."""
        return self.top, self.bottom  # type: ignore[return-value]  # torch knows them as modules

    def quantize(self, images: Float[Tensor, "b 3 H W"], draw: Draw | None = None) -> tuple[Quantized, ...]:
        """Top and bottom."""
        fine = self.encoder_bottom(images)
        top = self.top(self.to_top(self.encoder_top(fine)), draw)
        both = torch.cat([self.decoder_top(top.values), fine], dim=1)
        return top, self.bottom(self.to_bottom(both), draw)

    def render(self, values: Sequence[Float[Tensor, "b d _ _"]]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of the vectors of both levels."""
        top, bottom = values
        return self.decoder(torch.cat([self.upsample_top(top), bottom], dim=1))
