"""Text to image: prompts and seeds in, pictures out. What sampling, evaluation and callbacks all call."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from ldm.codec import Codec
from ldm.diffusion import Guidance
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampling

SEED_LIMIT = 2**63  # what torch's generators take


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
        precision: dtype that the network's matrix products run in.
    """

    net: nn.Module
    process: Process
    codec: Codec
    sampling: Sampling
    guidance: Guidance
    size: int
    negative: str = ""
    precision: torch.dtype = torch.float32

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed.

        Each seed has its own generator, so a picture depends on its prompt and seed, not on its batch.

        Raises:
            ValueError: not one seed a prompt, or a seed out of range.
        """
        return self.codec.decode(self.latents(prompts, seeds))

    @torch.no_grad()
    def latents(self, prompts: Sequence[str], seeds: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """The scaled latents of the pictures."""
        if len(prompts) != len(seeds):
            raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a picture")
        noise = SeededNoise(seeds, self.codec.latent_shape(self.size), device=self.codec.device)
        device = self.codec.device.type
        with torch.autocast(device, dtype=self.precision, enabled=self.precision != torch.float32):
            cond = self.process.denoiser(self.net, self.codec.encode_prompts(prompts))
            uncond = self.process.denoiser(
                self.net, self.codec.encode_prompts([self.negative] * len(prompts))
            )
            start = noise.draw()
            return self.sampling(self.guidance(cond, uncond), self.process.schedule, start, noise=noise)

    def with_options(self, **changes: object) -> "TextToImage":
        """The same pipeline with other sampling, guidance, negative prompt or precision."""
        return replace(self, **changes)  # type: ignore[arg-type]


class SeededNoise:
    """Standard normal noise with one generator a picture; each call continues every picture's own stream.

    Drawn on the CPU, so that a seed means the same picture on every device.
    """

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *, device: torch.device) -> None:
        for seed in seeds:
            if not 0 <= seed < SEED_LIMIT:
                raise ValueError(f"seed {seed} is out of range: seeds run from 0 to 2**63 - 1")
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def draw(self) -> Float[Tensor, "b c h w"]:
        """The next noise of each picture."""
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise in the dtype of `like`, as samplers ask for it."""
        return self.draw().to(like)
