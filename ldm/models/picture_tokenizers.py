"""Networks that turn pictures into codes and back, and the one on the trunk of the autoencoder: a VQGAN's."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ldm import NotFinite, UserError
from ldm.models.attention import SpatialAttention
from ldm.models.blocks import ResnetBlock, level_widths
from ldm.models.quantizers import Draw, Quantized
from ldm.models.vae import Decoder, Encoder


@runtime_checkable
class Quantizer(Protocol):
    """What a network needs of a module that turns features into codes."""

    num_codes: int
    channels: int  # of the features
    dim: int  # channels of the vectors that codes stand for

    def __call__(self, features: Tensor, draw: Draw | None = None, /) -> Quantized: ...

    def lookup(self, codes: Tensor, /) -> Tensor:
        """The vectors of codes."""


class CodeLevel(NamedTuple):
    """A square grid of codes."""

    grid: int  # its side
    num_codes: int  # that each of its places can have


class PictureTokenizer(nn.Module, ABC):
    """Pictures in [-1, 1] to codes and back.

    The codes of a picture are one row: its levels one after the other, the coarsest first, each in raster
    order.

    Attributes:
        size: side of the pictures in pixels.
        factor: how many of them become one place of the finest level.
        levels: the grids, the coarsest first.
    """

    size: int
    factor: int
    levels: tuple[CodeLevel, ...]

    @abstractmethod
    def quantize(self, images: Float[Tensor, "b 3 h w"], draw: Draw | None = None) -> tuple[Quantized, ...]:
        """The quantized feature maps of all levels."""

    @abstractmethod
    def quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizer of each level."""

    @abstractmethod
    def render(self, values: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b m H W"]:
        """What a loss compares with the pictures: by default themselves, not clipped."""

    def pictures(self, maps: Float[Tensor, "b m H W"]) -> Float[Tensor, "b 3 H W"]:
        """The pictures in what `render` returned."""
        return maps

    def forward(
        self, images: Float[Tensor, "b 3 H W"], draw: Draw | None = None
    ) -> tuple[Float[Tensor, "b m H W"], tuple[Quantized, ...]]:
        """Reconstruction as `render` returns it, and the quantized feature maps; raises as `checked`."""
        quantized = self.quantize(self.checked(images), draw)
        return self.render([each.values for each in quantized]), quantized

    def encode(self, images: Float[Tensor, "b 3 H W"]) -> Int[Tensor, "b n"]:
        """The codes of pictures; raises as `checked`, and NotFinite for features that are NaN or infinite."""
        levels = self.quantize(self.checked(images))
        # NaN, too, has a nearest code: a whole data set would get it
        if not torch.stack([each.loss + each.values.sum() for each in levels]).isfinite().all():
            raise NotFinite("the features of pictures are NaN or infinite: take another image tokenizer")
        return torch.cat([each.codes.flatten(1) for each in levels], dim=1)

    def decode(self, codes: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of codes, about in [-1, 1] and not clipped. Raises UserError as `split` does."""
        pairs = zip(self.quantizers(), self.split(codes), strict=True)
        return self.pictures(self.render([quantizer.lookup(own) for quantizer, own in pairs]))

    def compile(self, *args: Any, **options: Any) -> None:
        """Compiles encoders and decoders: what quantizers are given changes at every step."""
        quantizers = list(map(id, self.quantizers()))
        for child in self.children():
            if id(child) not in quantizers and any(child.children()):
                child.compile(*args, **options)

    def checked(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The same pictures; raises UserError for those of another size."""
        height, width = images.shape[-2:]
        if (height, width) != (self.size, self.size):
            given, own = f"{height}x{width}", f"{self.size}x{self.size}"
            raise UserError(f"pictures of {given} pixels: the tokenizer's are {own}")
        return images

    def reconstruct(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures through their codes and back."""
        return self.pictures(self(images)[0])

    def split(self, codes: Int[Tensor, "b n"]) -> tuple[Int[Tensor, "b s s"], ...]:
        """The grid of each level in rows of codes.

        Raises UserError for another number of codes, or one that is out of range.
        """
        if codes.shape[1] != self.length:
            raise UserError(f"{codes.shape[1]} codes a picture: the tokenizer has {self.length}")
        parts = codes.split([grid**2 for grid, _ in self.levels], dim=1)
        for part, (_, num_codes) in zip(parts, self.levels, strict=True):
            if part.numel() and not (int(part.min()) >= 0 and int(part.max()) < num_codes):
                found = f"codes from {int(part.min())} to {int(part.max())}"
                raise UserError(f"{found}: those of the tokenizer are 0 to {num_codes - 1}")
        return tuple(
            part.unflatten(1, (grid, grid)) for part, (grid, _) in zip(parts, self.levels, strict=True)
        )

    @property
    def length(self) -> int:
        """How many codes a picture has."""
        return sum(grid**2 for grid, _ in self.levels)

    @property
    def grid(self) -> int:
        """Side of the grid of a tokenizer of one level."""
        return self._only.grid

    @property
    def num_codes(self) -> int:
        """Size of the codebook of a tokenizer of one level."""
        return self._only.num_codes

    @property
    def _only(self) -> CodeLevel:
        if len(self.levels) > 1:
            raise UserError(
                f"codes.image_tokenizer has {len(self.levels)} levels of codes, and this system needs one:"
                " name another"
            )
        return self.levels[0]


def grid_of(size: int, factor: int) -> int:
    """Side of the grid of codes; UserError for a size that the factor doesn't divide."""
    if size < factor or size % factor:
        raise UserError(f"image_tokenizer: {size=} is not a multiple of its {factor=}: change one of them")
    return size // factor


class OneLevel(PictureTokenizer):
    """A tokenizer with one grid of codes.

    Args:
        encoder: pictures to features.
        quantizer: features to codes.
        decoder: vectors of codes to what is rendered; its last layer is `conv_out`.
        size, factor: see `PictureTokenizer`.
    """

    def __init__(
        self, *, encoder: nn.Module, quantizer: nn.Module, decoder: nn.Module, size: int, factor: int
    ) -> None:
        super().__init__()
        self.size, self.factor = size, factor
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder
        self.levels = (CodeLevel(grid_of(size, factor), self.quantizers()[0].num_codes),)

    def quantizers(self) -> tuple[Quantizer, ...]:
        """The quantizer alone."""
        return (self.quantizer,)  # type: ignore[return-value]  # torch knows it as a module

    def quantize(self, images: Float[Tensor, "b 3 h w"], draw: Draw | None = None) -> tuple[Quantized, ...]:
        """The quantized features."""
        return (self.quantizer(self.features(images), draw),)

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The features that go into the quantizer."""
        return self.encoder(images)

    def render(self, values: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b m H W"]:
        """The decoder's output."""
        return self.decoder(values[0])


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """The convolutions of :class:`ldm.models.vae.AutoencoderKL`, whose options these are.

    `level_attention` says whether each level has attention after its blocks, the finest first.
    """

    channels: int
    multipliers: list[float | int]
    blocks_per_level: int
    norm_groups: int = 32
    mid_attention: bool = True
    level_attention: list[bool] = field(default_factory=list)
    patch: int = 1
    checkpointing: bool = False
    norm_eps: float = 1e-6  # of the group norms; CLIP-GEN's have 1e-5

    def halves(self, features: int) -> tuple[Encoder, Decoder]:
        """Encoder and decoder with `features` channels between them; UserError on sizes that do not fit."""
        widths = level_widths(self.channels, self.multipliers, norm_groups=self.norm_groups)
        options: dict[str, Any] = {"blocks": self.blocks_per_level, "norm_groups": self.norm_groups}
        options["attention"] = self.mid_attention
        colours, attends = 3 * self.patch**2, self.level_attention or [False] * len(widths)
        if len(attends) != len(widths):
            raise UserError(f"level_attention={attends} must have one entry for each of {len(widths)} levels")
        encoder = Encoder(colours, widths, features, **options)
        decoder = Decoder(colours, widths, features, **options)
        for level, does in zip([*encoder.levels, *decoder.levels], attends + attends[::-1], strict=True):
            level.checkpointing = self.checkpointing
            if does:
                level.blocks = nn.Sequential(*map(self._attending, level.blocks))
        encoder.middle.checkpointing = decoder.middle.checkpointing = self.checkpointing
        for norm in [*encoder.modules(), *decoder.modules()]:
            if isinstance(norm, nn.GroupNorm):
                norm.eps = self.norm_eps
        return encoder, decoder

    def _attending(self, block: nn.Module) -> nn.Sequential:
        assert isinstance(block, ResnetBlock)
        width = block.conv_out.out_channels
        return nn.Sequential(block, SpatialAttention(width, norm_groups=self.norm_groups))


class VQAutoencoder(OneLevel):
    """The autoencoder of latent diffusion around a quantizer (Esser et al. 2021, sec. 3.1 and table 7).

    Args:
        size: side of the pictures in pixels.
        trunk: of encoder and decoder.
        features: channels between them, which 1x1 convolutions take to the quantizer's and back.
        quantizer: features to codes.

    Raises UserError on sizes that do not fit.
    """

    def __init__(self, *, size: int, trunk: Trunk, features: int, quantizer: nn.Module) -> None:
        encoder, decoder = trunk.halves(features)
        factor = trunk.patch * 2 ** (len(trunk.multipliers) - 1)
        super().__init__(encoder=encoder, quantizer=quantizer, decoder=decoder, size=size, factor=factor)
        self.patch = trunk.patch
        # the quant_conv and post_quant_conv of the released models
        self.to_quantizer = nn.Conv2d(features, self.quantizers()[0].channels, 1)
        self.from_codes = nn.Conv2d(self.quantizers()[0].dim, features, 1)

    def features(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b c h w"]:
        """The encoder's output in the quantizer's channels."""
        return self.to_quantizer(self.encoder(F.pixel_unshuffle(images, self.patch)))

    def render(self, values: Sequence[Float[Tensor, "b d h w"]]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of the vectors of codes."""
        return F.pixel_shuffle(self.decoder(self.from_codes(values[0])), self.patch)
