"""DALL-E's discrete VAE (Ramesh et al. 2021, sec. 2.1 and app. A), in the layers of OpenAI's release.

Residual branches have a quarter of the channels inside, kernels 3-3-3-1 in the encoder and 1-3-3-3 in the
decoder, and a gain of 1 / L^2 with L blocks in all. Pixels are modelled in (epsilon, 1 - epsilon), where
their logit is finite.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm.models.picture_tokenizers import OneLevel

EPSILON = 0.1  # OpenAI's: pixels are mapped to 0.1 ... 0.9
LOG_2 = math.log(2)


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size; weights start at N(0, 1 / fan-in), biases at 0."""
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(inputs * kernel**2) ** -0.5)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]  # it has one
    return layer


class Block(nn.Module):
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
            layers.append(Block(inputs, width, kernels=kernels, gain=(len(widths) * blocks) ** -2.0))
            inputs = width
        if number < len(widths) - 1:
            layers.append(resample)
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Pixels to features, after their last ReLU; the quantizer has the convolution to logits."""

    def __init__(self, widths: Sequence[int], *, blocks: int) -> None:
        super().__init__()
        self.conv_in = convolution(3, widths[0], 7)
        pool = nn.MaxPool2d(2)
        self.groups = groups(widths[0], widths, blocks=blocks, kernels=(3, 3, 3, 1), resample=pool)

    def forward(self, pixels: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """Features of pixels in (0, 1)."""
        return F.relu(self.groups(self.conv_in(pixels)))


class Decoder(nn.Module):
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
            encoder=Encoder(widths, blocks=blocks_per_group),
            quantizer=quantizer,
            decoder=Decoder(inputs, widths, blocks=blocks_per_group),
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
