"""The frozen parts around a denoiser: pictures to latents and back, prompts to conditioning states."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.models.clip import TextTransformer
from ldm.models.vae import AutoencoderKL, Posterior
from ldm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Codec:
    """Frozen autoencoder, text encoder and tokenizer, and the only home of the latent shift and scale.

    Not a module: held by a stage it stays out of checkpoints, optimizer, gradient reduction and averages.

    Attributes:
        latent_shift, latent_scale: per channel, (c,); a scaled latent is (latent - shift) * scale.
    """

    autoencoder: AutoencoderKL
    text_encoder: TextTransformer
    tokenizer: Tokenizer
    latent_shift: Float[Tensor, " c"]
    latent_scale: Float[Tensor, " c"]

    def __post_init__(self) -> None:
        for part in (self.autoencoder, self.text_encoder):
            part.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.autoencoder.parameters()).device

    def to(self, device: torch.device | str) -> "Codec":
        """Moves the networks (in place, as modules do); returns self."""
        self.autoencoder.to(device)
        self.text_encoder.to(device)
        return self

    def fingerprint(self) -> str:
        """sha256 of all that decides what this codec makes of a picture or a prompt."""
        digest = hashlib.sha256(repr(self.tokenizer.fingerprint()).encode())
        tensors = {**self.autoencoder.state_dict(), **self.text_encoder.state_dict()}
        tensors |= {"latent_shift": self.latent_shift, "latent_scale": self.latent_scale}
        for name, tensor in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Shape (c, h, w) of the latents of pictures of `size` pixels a side.

        Raises:
            ValueError: a side that the autoencoder can't divide.
        """
        factor = self.autoencoder.factor
        if size % factor:
            raise ValueError(
                f"a side of {size} pixels is not a multiple of the autoencoder's factor {factor}"
            )
        return self.autoencoder.latent_channels, size // factor, size // factor

    @torch.no_grad()
    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Posterior:
        """Posterior of the scaled latents."""
        posterior = self.autoencoder.posterior(to_float(images.to(self.device)))
        shift, scale = self._affine(posterior.mean)
        return Posterior(mean=(posterior.mean - shift) * scale, logvar=posterior.logvar + 2 * scale.log())

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b 3 H W"]:
        """Pictures of scaled latents."""
        latents = latents.float()
        shift, scale = self._affine(latents)
        return to_uint8(self.autoencoder.decode(latents / scale + shift))

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Float[Tensor, "b n d"]:
        """Text states, one row a prompt; the empty prompt is the unconditional one."""
        return self.text_encoder(self.tokenizer.encode(prompts).to(self.device)).states.float()

    def _affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = (v.to(like).view(1, -1, 1, 1) for v in (self.latent_shift, self.latent_scale))
        return shift, scale


def to_float(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """0 .. 255 to -1 .. 1."""
    return images.float() / 127.5 - 1


def to_uint8(images: Float[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """-1 .. 1 to 0 .. 255, rounded; what lies outside is clipped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
