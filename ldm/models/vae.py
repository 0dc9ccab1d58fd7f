"""KL-regularised autoencoder of latent diffusion (Rombach et al. 2022, sec. 3.1 and app. G)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError
from ldm.models.attention import SpatialAttention
from ldm.models.blocks import Downsample, ResnetBlock, Upsample, apply, level_widths

LOGVAR_RANGE = (-30.0, 20.0)  # released code of Rombach et al. 2022: keeps the variance finite


class Posterior(NamedTuple):
    """Diagonal Gaussian over latents, in float32 even under autocast."""

    mean: Float[Tensor, "b z h w"]
    logvar: Float[Tensor, "b z h w"]

    @property
    def std(self) -> Float[Tensor, "b z h w"]:
        """Standard deviation of each latent."""
        return torch.exp(0.5 * self.logvar)

    def sample(self, noise: Float[Tensor, "b z h w"]) -> Float[Tensor, "b z h w"]:
        """Latents sampled with the given standard normal noise (Kingma & Welling 2014, sec. 2.4)."""
        # noise is an argument: training makes it from a sample's position, so a resumed run has the same
        return self.mean + self.std * noise

    def kl(self) -> Float[Tensor, " b"]:
        """Divergence to the standard normal in nats, summed over each picture's latents."""
        nats = 0.5 * (self.mean.square() + self.logvar.exp() - 1.0 - self.logvar)
        return nats.sum(dim=(1, 2, 3))


class Level(nn.Module):
    """Residual blocks of one resolution and the change to the next; the last level of a side has none."""

    def __init__(
        self, before: int, width: int, *, blocks: int, norm_groups: int, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.checkpointing = False
        inputs = [before] + [width] * (blocks - 1)
        self.blocks = nn.Sequential(*(ResnetBlock(c, width, norm_groups=norm_groups) for c in inputs))
        self.resample = resample or nn.Identity()

    def forward(self, x: Float[Tensor, "b c_in h w"]) -> Float[Tensor, "b c_out h2 w2"]:
        """Feature map of the next resolution."""
        for block in self.blocks:
            x = apply(block, x, recompute=self.checkpointing)
        return self.resample(x)


def levels(
    widths: Sequence[int], resample: Callable[[int], nn.Module], *, blocks: int, norm_groups: int
) -> nn.ModuleList:
    """One level per width; all but the last change the resolution."""
    resamplers = [*map(resample, widths[:-1]), None]
    pairs = zip(pairwise([widths[0], *widths]), resamplers, strict=True)
    return nn.ModuleList(
        Level(before, width, blocks=blocks, norm_groups=norm_groups, resample=each)
        for (before, width), each in pairs
    )


class Middle(nn.Module):
    """Residual block, attention over all pixels, residual block; at the lowest resolution."""

    def __init__(self, width: int, *, norm_groups: int, attention: bool) -> None:
        super().__init__()
        self.checkpointing = False
        self.block_in = ResnetBlock(width, width, norm_groups=norm_groups)
        # optional: its work grows with the square of the number of pixels, that of a convolution linearly
        self.attention = SpatialAttention(width, norm_groups=norm_groups) if attention else nn.Identity()
        self.block_out = ResnetBlock(width, width, norm_groups=norm_groups)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Feature map of the same shape."""
        for part in (self.block_in, self.attention, self.block_out):
            x = apply(part, x, recompute=self.checkpointing)
        return x


class Encoder(nn.Module):
    """Images to moments; halves the resolution after every level but the last."""

    def __init__(
        self,
        colours: int,
        widths: Sequence[int],
        moments: int,
        *,
        blocks: int,
        norm_groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(colours, widths[0], 3, padding=1)
        halve = partial(Downsample, pad_all_around=False)  # the released weights were trained with it
        self.levels = levels(widths, halve, blocks=blocks, norm_groups=norm_groups)
        self.middle = Middle(widths[-1], norm_groups=norm_groups, attention=attention)
        self.norm_out = nn.GroupNorm(norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], moments, 3, padding=1)

    def forward(self, images: Float[Tensor, "b k H W"]) -> Float[Tensor, "b m h w"]:
        """Mean and log-variance as channels, m = 2 z."""
        h = self.conv_in(images)
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """Latents to images; one block more per level than the encoder, widest level first."""

    def __init__(
        self,
        colours: int,
        widths: Sequence[int],
        latents: int,
        *,
        blocks: int,
        norm_groups: int,
        attention: bool,
    ) -> None:
        super().__init__()
        falling = widths[::-1]
        self.conv_in = nn.Conv2d(latents, falling[0], 3, padding=1)
        self.middle = Middle(falling[0], norm_groups=norm_groups, attention=attention)
        # + 1 as in the released models, whose weights must fit
        self.levels = levels(falling, Upsample, blocks=blocks + 1, norm_groups=norm_groups)
        self.norm_out = nn.GroupNorm(norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], colours, 3, padding=1)

    def forward(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b k H W"]:
        """Images before pixels are unfolded."""
        h = self.middle(self.conv_in(latents))
        for level in self.levels:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Images in [-1, 1] to Gaussian latents and back; ``factor`` pixels of a side become one latent.

    With ``patch`` above 1 the networks see patch x patch pixels as channels of one: that saves most of the
    work, which is done at full resolution. ``checkpointing`` is activation checkpointing of the blocks. The
    latent scale belongs to the codec. Raises UserError on sizes that do not fit.
    """

    def __init__(
        self,
        *,
        channels: int,
        multipliers: Sequence[float | int],
        blocks_per_level: int,
        latent_channels: int,
        norm_groups: int = 32,
        mid_attention: bool = True,
        patch: int = 1,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        widths = level_widths(channels, multipliers, norm_groups=norm_groups)
        self.latent_channels = latent_channels
        self.patch = patch
        self.factor = patch * 2 ** (len(widths) - 1)
        colours, moments = 3 * patch**2, 2 * latent_channels
        shared: dict[str, Any] = {"blocks": blocks_per_level, "norm_groups": norm_groups}
        shared["attention"] = mid_attention
        self.encoder = Encoder(colours, widths, moments, **shared)
        # the quant_conv and post_quant_conv of the released models, which need them to be imported
        self.to_moments = nn.Conv2d(moments, moments, 1)
        self.from_latents = nn.Conv2d(latent_channels, latent_channels, 1)
        self.decoder = Decoder(colours, widths, latent_channels, **shared)
        # set from here, so that four constructors need not hand it down
        for module in self.modules():
            if isinstance(module, Level | Middle):
                module.checkpointing = checkpointing

    def posterior(self, images: Float[Tensor, "b 3 H W"]) -> Posterior:
        """Gaussian over the latents of ``images``, whose sides must be multiples of ``factor``."""
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            raise UserError(
                f"Images of {height}x{width} pixels do not divide by the autoencoder's factor {self.factor}; "
                f"resize or crop them to multiples of {self.factor}."
            )
        # float32 even under autocast: exp(logvar) and the KL need more than 8 bits of mantissa
        moments = self.to_moments(self.encoder(F.pixel_unshuffle(images, self.patch)))
        mean, logvar = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
        return Posterior(mean=mean, logvar=logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latents: Float[Tensor, "b z h w"]) -> Float[Tensor, "b 3 H W"]:
        """Images from latents, about in [-1, 1] and not clipped."""
        # not clipped: a loss must see by how much a pixel is out of range, and a clip has no gradient there
        return F.pixel_shuffle(self.decoder(self.from_latents(latents)), self.patch)

    def reconstruct(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures through the means of their posterior and back."""
        return self.decode(self.posterior(images).mean)

    def forward(
        self, images: Float[Tensor, "b 3 H W"], noise: Float[Tensor, "b z h w"]
    ) -> tuple[Float[Tensor, "b 3 H W"], Posterior]:
        """Reconstruction from a posterior sample, and the posterior."""
        posterior = self.posterior(images)
        return self.decode(posterior.sample(noise)), posterior
