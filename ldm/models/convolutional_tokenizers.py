"""Tokenizers of convolutions of their own: DALL-E's discrete VAE, CogView's of one level, VQ-VAE-2's of two.

The first is in the layers of OpenAI's release (Ramesh et al. 2021, sec. 2.1 and app. A). Residual branches
have a quarter of the channels inside, kernels 3-3-3-1 in the encoder and 1-3-3-3 in the decoder, and a gain
of 1 / L^2 with L blocks in all. Pixels are modelled in (epsilon, 1 - epsilon), where their logit is finite.
The others are strided (Ding et al. 2021, sec. 2.2; Razavi et al. 2019, sec. 3.1, in the layers of Sonnet's
and rosinality's code).
"""

import math
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

EPSILON = 0.1  # OpenAI's: pixels are mapped to 0.1 ... 0.9
LOG_2 = math.log(2)
FINE, COARSE = 4, 8  # pixels of a side that become one code of VQ-VAE-2's bottom and of its top level


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size; weights start at N(0, 1 / fan-in), biases at 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
    return layer


class DalleBlock(nn.Module):
    """Four convolutions with ReLU before each, added to the input with a gain."""

    def __init__(self, inputs: int, outputs: int, *, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        hidden = outputs // 4
        widths = [inputs, hidden, hidden, hidden, outputs]
        pairs = zip(pairwise(widths), kernels, strict=True)
        self.convolutions = nn.ModuleList(convolution(*each, kernel) for each, kernel in pairs)
        self.shortcut = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)
        self.gain = gain

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h w"]:
        """The block's output."""
        residual = x
        for layer in self.convolutions:
            residual = layer(F.relu(residual))
        return self.shortcut(x) + self.gain * residual


def groups(
    inputs: int, widths: Sequence[int], *, blocks: int, kernels: Sequence[int], resample: nn.Module
) -> nn.Sequential:
    """One group of blocks per width, `resample` between them."""
    layers: list[nn.Module] = []
    for number, width in enumerate(widths):
        for _ in range(blocks):
            layers.append(DalleBlock(inputs, width, kernels=kernels, gain=(len(widths) * blocks) ** -2.0))
            inputs = width
        if number < len(widths) - 1:
            layers.append(resample)
    return nn.Sequential(*layers)


class DalleEncoder(nn.Module):
    """Pixels to features, after their last ReLU; the quantizer has the convolution to logits."""

    def __init__(self, widths: Sequence[int], *, blocks: int) -> None:
        super().__init__()
        self.conv_in = convolution(3, widths[0], 7)
        pool = nn.MaxPool2d(2)
        self.groups = groups(widths[0], widths, blocks=blocks, kernels=(3, 3, 3, 1), resample=pool)

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Features of pixels in (0, 1)."""
        return F.relu(self.groups(self.conv_in(pixels)))


class DalleDecoder(nn.Module):
    """Vectors of codes to means and logarithms of scales of each pixel's logit."""

    def __init__(self, inputs: int, widths: Sequence[int], *, blocks: int) -> None:
        super().__init__()
        double = nn.Upsample(scale_factor=2.0, mode="nearest")
        falling = widths[::-1]
        self.groups = groups(inputs, falling, blocks=blocks, kernels=(1, 3, 3, 3), resample=double)
        self.conv_out = convolution(widths[0], 6, 1)

    def forward(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b 6 H W"]:
        """Three means, then three logarithms of scales."""
        return self.conv_out(F.relu(self.groups(vectors)))


class DiscreteVAE(OneLevel):
    """The tokenizer of DALL-E: its error is `logit_laplace`, and pictures are the means.

    Args:
        size: side of the pictures in pixels.
        channels, multipliers: widths of the groups; every one after the first halves the resolution.
        blocks_per_group: residual blocks.
        quantizer: of ``channels * multipliers[-1]`` channels, a `GumbelQuantizer`.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        multipliers: Sequence[int],
        blocks_per_group: int,
        quantizer: nn.Module,
    ) -> None:
        widths, inputs = [channels * each for each in multipliers], int(quantizer.dim)  # type: ignore[arg-type]
        super().__init__(
            encoder=DalleEncoder(widths, blocks=blocks_per_group),
            quantizer=quantizer,
            decoder=DalleDecoder(inputs, widths, blocks=blocks_per_group),
            size=size,
            factor=2 ** (len(widths) - 1),
        )

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The encoder's features of the mapped pixels."""
        return self.encoder(mapped(images))

    def pictures(self, maps: Float[Tensor, "b 6 H W"]) -> Float[Tensor, "b 3 H W"]:
        """The means alone, as pixels in [-1, 1]."""
        shares = (torch.sigmoid(maps[:, :3].float()) - EPSILON) / (1 - 2 * EPSILON)
        return 2 * shares.clamp(0, 1) - 1


def mapped(images: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """-1 ... 1 to epsilon ... 1 - epsilon."""
    return (1 - 2 * EPSILON) * (images + 1) / 2 + EPSILON


def logit_laplace(maps: Float[Tensor, "b 6 H W"], images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, ""]:
    """Negative log-likelihood in nats, mean over values (ibid., app. A.3, eq. 2).

    The density of a mapped pixel x is ``exp(-|logit x - mu| / b) / (2 b x (1 - x))``.
    """
    mean, log_scale = maps.float().chunk(2, dim=1)
    pixels = mapped(images)
    distance = (torch.logit(pixels) - mean).abs() * torch.exp(-log_scale)
    return (distance + log_scale + LOG_2 + (pixels * (1 - pixels)).log()).mean()


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
