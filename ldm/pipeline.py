"""Prompts, seeds and perhaps pictures in, pictures out. What sampling, evaluation and callbacks all call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ldm import UserError
from ldm.codec import Codec
from ldm.diffusion import Denoiser, Guidance
from ldm.diffusion.editing import from_strength, keeping, noised
from ldm.diffusion.guidance import apart, batched
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampling
from ldm.randomness.noise import SeededNoise


@dataclass(frozen=True, kw_only=True)
class Source:
    """Pictures that drawing starts from, one for each prompt.

    Attributes:
        images: of the pipeline's size.
        strength: how much noise they get, as the time that sampling starts at: 0 to 1.
        redrawn: the pixels that are drawn anew; the others stay as they are, to the byte. None: all.
    """

    images: UInt8[Tensor, "b 3 h w"]
    strength: float = 1.0
    redrawn: Bool[Tensor, "b 1 h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class TextToImage:
    """A denoiser with all that is needed to draw pictures from it.

    Attributes:
        net: the trained network.
        process: how its output is read.
        codec: prompts to context, latents to pictures.
        sampling: method, grid and number of steps.
        guidance: how the conditional and the unconditional denoiser are joined.
        size: side of a picture in pixels.
        negative: the prompt of the unconditional denoiser; the empty one is what training drops to.
        weak: a worse network that, given the prompt, takes the unconditional denoiser's place: autoguidance.
        precision: dtype that the network's matrix products run in.
        noise: what makes noise of seeds; the earlier generator is for pictures that were made with it.

    Raises:
        UserError: a negative prompt beside a weak network, which leaves it no place.
    """

    net: nn.Module
    process: Process
    codec: Codec
    sampling: Sampling
    guidance: Guidance
    size: int
    negative: str = ""
    weak: nn.Module | None = None
    precision: torch.dtype = torch.float32
    noise: type[SeededNoise] = SeededNoise

    def __post_init__(self) -> None:
        if self.weak is not None and self.negative:
            raise UserError(
                f"negative={self.negative!r} has no place beside a weak network, which is told the prompt:"
                " leave one of them out"
            )

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed, from noise alone or from the pictures of a source.

        Each seed has a stream of noise of its own, so a picture depends on its prompt and seed, and on its
        batch only by rounding: kernels sum in an order that the size of a batch decides, which may change a
        value of a picture by 1 of 255 here and there.

        Raises:
            UserError: not one seed, and picture if there are any, for each prompt; a seed or strength out of
                range; a source of another size.
        """
        drawn = self.codec.decode(self.latents(prompts, seeds, source=source))
        if source is None or source.redrawn is None:
            return drawn
        return torch.where(source.redrawn.to(drawn.device), drawn, source.images.to(drawn.device))

    @torch.no_grad()
    def latents(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None
    ) -> Float[Tensor, "b c h w"]:
        """The scaled latents of the pictures."""
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a picture")
        noise = self.noise(seeds, self.codec.latent_shape(self.size), device=self.codec.device)
        schedule, device = self.process.schedule, self.codec.device.type
        x, times = noise.draw(), self.sampling.times(self.process.schedule)
        if source is not None:
            known = self._encoded(source, count=len(prompts))
            times = from_strength(times, source.strength)
            x = noised(known, x, times[0], schedule)
        with torch.autocast(device, dtype=self.precision, enabled=self.precision != torch.float32):
            denoise = self._denoiser(prompts)
            if source is not None and source.redrawn is not None:
                denoise = keeping(denoise, known, self._touched(source.redrawn).expand_as(known))
            return self.sampling(denoise, schedule, x, noise=noise, times=times)

    def _denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """What the sampler follows."""
        context = self.codec.encode_prompts(prompts)
        cond = self.process.denoiser(self.net, context)
        if self.weak is not None:
            return self.guidance(cond, apart(cond, self.process.denoiser(self.weak, context)))
        nothing = self.codec.encode_prompts([self.negative] * len(prompts))
        both = self.process.denoiser(self.net, torch.cat([context, nothing]))
        return self.guidance(cond, batched(both))

    def _encoded(self, source: Source, *, count: int) -> Float[Tensor, "b c h w"]:
        """The posterior means of a source's scaled latents."""
        expected = (count, 3, self.size, self.size)
        if source.images.shape != expected:
            raise UserError(f"pictures to start from have shape {tuple(source.images.shape)}, not {expected}")
        return self.codec.encode_images(source.images).mean

    def _touched(self, redrawn: Bool[Tensor, "b 1 H W"]) -> Bool[Tensor, "b 1 h w"]:
        """The latents in whose pixels anything is redrawn."""
        pixels = redrawn.to(self.codec.device, torch.float32)
        return F.max_pool2d(pixels, self.codec.autoencoder.factor) > 0

    def with_options(self, **changes: object) -> "TextToImage":
        """The same pipeline with other sampling, guidance, negative prompt or precision."""
        return replace(self, **changes)  # type: ignore[arg-type]
