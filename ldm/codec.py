"""The frozen parts around what is trained: pictures to latents or codes and back, prompts to states."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float16, Int, Int64, UInt8
from torch import Tensor

from ldm import NotFinite, UserError, send
from ldm.tokenizers import Tokenizer

# Rows that a frozen network sees at once. The last chunk is filled up; a CPU is as fast with 4 as with more.
CPU_CHUNK, GPU_CHUNK = 4, 16
Own = TypeVar("Own", bound="Frozen")


@runtime_checkable
class Posterior(Protocol):
    """A diagonal Gaussian over latents, b c h w: a named tuple."""

    @property
    def mean(self) -> Tensor:
        """The mean of each latent value."""

    @property
    def logvar(self) -> Tensor:
        """The logarithm of its variance."""

    def _replace(self, **fields: Tensor) -> "Posterior": ...


@runtime_checkable
class Autoencoder(Protocol):
    """Images in [-1, 1] to a posterior over latents and back; `factor` pixels of a side become one latent.

    A protocol, and not the class of `ldm.models`: the bundle's config decides which network it is.
    """

    latent_channels: int
    factor: int

    def posterior(self, images: Tensor, /) -> Any:
        """A `Posterior`, of the network's own named tuple."""

    def decode(self, latents: Tensor, /) -> Tensor:
        """Images, b 3 h w, of latents."""

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers by name."""


@runtime_checkable
class TextEncoder(Protocol):
    """Token ids, b n, to an output whose `states` are b n d, with d = `width`."""

    width: int
    context_length: int

    def __call__(self, tokens: Tensor, /) -> Any: ...

    def state_dict(self) -> dict[str, Any]:
        """Weights and buffers by name."""


class Frozen:
    """The base class of dataclasses that hold frozen networks.

    Not a module: held by a stage it stays out of checkpoints, optimizer, gradient reduction and averages.
    """

    NETWORKS: ClassVar[tuple[str, ...]]  # names of the fields with networks, some of which may be None
    CHUNKS: ClassVar = (CPU_CHUNK, GPU_CHUNK)

    def __post_init__(self) -> None:
        for net in self.networks:
            net.eval().requires_grad_(False)

    @property
    def networks(self) -> list[Any]:
        """Those that are there."""
        return [net for name in self.NETWORKS if (net := getattr(self, name)) is not None]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return next(self.networks[0].parameters()).device

    @property
    def chunk(self) -> int:
        """Rows that one of them sees at once."""
        return self.CHUNKS[self.device.type != "cpu"]

    def to(self: Own, device: torch.device | str) -> Own:
        """Moves them in place, as modules do; returns self."""
        for net in self.networks:
            net.to(device)
        return self

    @torch.no_grad()
    def in_chunks(
        self, compute: Callable[[Tensor], Tensor], rows: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """`compute` of a chunk of rows at a time: each row gets the same bits whatever its batch."""
        return in_chunks(compute, rows, self.chunk, self.device, dtype)


@dataclass(frozen=True, kw_only=True)
class Codec(Frozen):
    """Frozen autoencoder, text encoder and tokenizer, and the only home of the latent shift and scale.

    A scaled latent is (latent - shift) * scale, per channel.
    """

    NETWORKS: ClassVar = ("autoencoder", "text_encoder")

    autoencoder: Autoencoder
    text_encoder: TextEncoder
    tokenizer: Tokenizer
    latent_shift: Float[Tensor, " c"]
    latent_scale: Float[Tensor, " c"]

    def picture_fingerprint(self) -> str:
        """sha256 of everything that decides the latents of a picture."""
        affine = {"latent_shift": self.latent_shift, "latent_scale": self.latent_scale}
        return hash_of(affine | self.autoencoder.state_dict())

    def text_fingerprint(self) -> str:
        """sha256 of everything that decides the text states of a prompt."""
        # the tokenizer too: other ids are another text to the same encoder
        return hash_of(self.text_encoder.state_dict(), *self.tokenizer.fingerprint())

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of pictures of `size` pixels a side; UserError if there is none."""
        factor = self.autoencoder.factor
        if size < factor or size % factor:
            raise UserError(f"a side of {size} pixels is not a multiple of the autoencoder's factor {factor}")
        return self.autoencoder.latent_channels, size // factor, size // factor

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior of the scaled latents."""
        posterior = self.autoencoder.posterior(to_float(images.to(self.device)))
        shift, scale = self._affine(posterior.mean)
        logvar = posterior.logvar + 2 * scale.log()  # the variance grows with the square of the scale
        return posterior._replace(mean=(posterior.mean - shift) * scale, logvar=logvar)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 H W"]:
        """Pictures of scaled latents, a few at a time: decoding needs far more memory than its result.

        Raises NotFinite for latents or pictures that are NaN or infinite, and would be saved black.
        """
        # float32: a caller may sample in float64, in which decoding takes twice the time and memory
        shift, scale = self._affine(latents.float())
        parts = (latents.float() / scale + shift).split(self.chunk)
        pictures = [self.autoencoder.decode(part) for part in parts]
        if not all(picture.isfinite().all() for picture in pictures):
            raise NotFinite(
                "the pictures are NaN or infinite: lower the guidance scale, take precision=float32,"
                " or take another bundle"
            )
        return torch.cat([to_uint8(picture) for picture in pictures])

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Text states, one row per prompt; the empty prompt is the unconditional one."""
        return self.text_encoder(self.tokenizer.encode(prompts).to(self.device)).states.float()

    def moments(
        self, images: UInt8[Tensor, "b 3 H W"], dtype: torch.dtype = torch.float32
    ) -> Float16[Tensor, "b 2 c h w"]:
        """Means and log-variances of the scaled latents, as a denoiser is trained on them.

        A picture gets the same bits whatever its batch, so training on stored moments is training on
        pictures: they are rounded to half precision here, and computed in chunks of one size, in `dtype`.
        """

        def encode(chunk: Tensor) -> Tensor:
            posterior = self.encode_images(chunk)
            return torch.stack([posterior.mean, posterior.logvar], dim=1).half()

        return self.in_chunks(encode, images, dtype)

    def context(
        self, tokens: Int[Tensor, "b n"], dtype: torch.dtype = torch.float32
    ) -> Float16[Tensor, "b n d"]:
        """Text states of token ids, as a denoiser is trained on them, with the same care as `moments`."""
        return self.in_chunks(lambda ids: self.text_encoder(ids).states.half(), tokens, dtype)

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        # sent at each use: a codec is no module, whose buffers would move along
        affine = send(torch.stack([self.latent_shift, self.latent_scale]), like.device).to(like.dtype)
        shift, scale = affine.view(2, 1, -1, 1, 1)
        return shift, scale


@dataclass(frozen=True)
class PictureCodes(Frozen):
    """A frozen tokenizer with its identity.

    A picture gets the same codes, and a row of codes the same picture, whatever else is in their batch.
    """

    NETWORKS: ClassVar = ("net",)

    net: Any  # a `ldm.models.picture_tokenizers.PictureTokenizer`

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides codes and pictures."""
        sizes = repr((self.net.size, self.net.levels))
        return hash_of(self.net.state_dict(), type(self.net).__name__, sizes)

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, "b n"]:
        """The codes of each picture, one row: see `PictureTokenizer`."""
        return self.in_chunks(lambda chunk: self.net.encode(to_float(chunk)), images)

    def decode(self, codes: Int64[Tensor, "b n"]) -> UInt8[Tensor, "b 3 h w"]:
        """The pictures of rows of codes.

        Raises UserError for codes that are not the tokenizer's, NotFinite for pictures that are NaN or
        infinite.
        """
        self.net.split(codes)  # refuses wrong ones before they are sent to a device

        def render(chunk: Tensor) -> Tensor:
            pictures = self.net.decode(chunk)
            if not pictures.isfinite().all():
                raise NotFinite("the pictures are NaN or infinite: take another bundle of the tokenizer")
            return to_uint8(pictures)

        return self.in_chunks(render, codes)

    def reconstruct(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures through their codes and back."""
        return self.decode(self.encode_images(images))


def in_chunks(
    compute: Callable[[Tensor], Tensor],
    rows: Tensor,
    size: int,
    device: Any,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """`compute` of `size` rows at a time on a device: each row gets the same bits whatever its batch."""
    made = []
    with torch.autocast(device.type, enabled=False):  # whatever the training's precision is
        for chunk in send(rows, device).split(size):
            # kernels sum in an order that the number of rows decides: a short chunk is filled up
            filled = torch.cat([chunk, chunk[-1:].expand(size - len(chunk), *chunk.shape[1:])])
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                made.append(compute(filled)[: len(chunk)])
        return torch.cat(made)


def to_float(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """0 .. 255 to -1 .. 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """-1 .. 1 to 0 .. 255, rounded; what lies outside is clipped."""
    # rounded: a cast alone cuts the fraction off, which darkens a picture by half a level
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def hash_of(tensors: Mapping[str, Tensor], *lines: str) -> str:
    """sha256 of weights and lines of text, whatever the order of the weights."""
    digest = hashlib.sha256("\n".join(lines).encode())
    for name, tensor in sorted(tensors.items()):  # a network may register its weights in another order
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
