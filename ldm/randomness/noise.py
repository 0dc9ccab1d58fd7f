"""Noise of pictures: each seed has a stream of its own, whatever it is generated beside."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError
from ldm.randomness import philox
from ldm.randomness.seeds import EARLIER_GENERATOR, GENERATOR, check_seed, key_of


class SeededNoise:
    """Standard normal noise with one stream a seed; each call continues the stream of every picture.

    Args:
        seeds: one a picture.
        shape: of the noise of a picture.
        device: where it is generated; the numbers are the same on all of them.

    Raises UserError for what is no seed, see `check_seed`.
    """

    name: ClassVar[str] = GENERATOR

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], *, device: torch.device) -> None:
        for seed in seeds:
            check_seed(seed)
        self.seeds, self.shape, self.device = list(seeds), tuple(shape), device
        self.calls = 0

    def generate(self) -> Float[Tensor, "b c h w"]:
        """The next noise of each picture."""
        positions = torch.full((len(self.seeds),), self.calls, device=self.device)
        self.calls += 1
        keys = [key_of(seed, "picture") for seed in self.seeds]
        return philox.normals(keys, positions, self.shape, device=self.device)

    def __call__(self, like: Tensor) -> Tensor:
        """The next noise in the dtype of `like`, as samplers ask for it."""
        return self.generate().to(like)  # float32 first: the same noise for every dtype


class Mt19937Noise(SeededNoise):
    """The noise of torch's CPU generators, which diffusers and earlier versions of this library use.

    Of a seed the lower 32 bits count.
    """

    name = EARLIER_GENERATOR

    def generate(self) -> Float[Tensor, "b c h w"]:
        """The next noise of each picture, made on the CPU and moved to the device."""
        # on the CPU: torch's generators of other devices make other numbers of the same seed
        if not self.calls:
            self.generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        self.calls += 1
        rows = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(rows).to(self.device)


NOISES: Mapping[str, type[SeededNoise]] = MappingProxyType(
    {each.name: each for each in (SeededNoise, Mt19937Noise)}
)


def noise_of(generator: object) -> type[SeededNoise]:
    """The noise that a generator's name stands for; UserError for an unknown one, with the known ones."""
    noise = NOISES.get(generator) if isinstance(generator, str) else None
    if noise is None:
        raise UserError(f"generator={generator} is unknown: write {' or '.join(NOISES)}")
    return noise
