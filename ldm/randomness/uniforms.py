"""Uniform numbers in (0, 1) of samples and pictures, which choices among codes are made with."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ldm.randomness import philox
from ldm.randomness.seeds import key_of

BITS = 23  # the middles of 2**23 equal parts are exact in float32, and neither 0 nor 1 is among them


def uniforms(
    shape: Sequence[int], *, seed: int, positions: Tensor, stream: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform numbers of each position: float32, (len(positions), *shape), the same on every device."""
    return of_keys([key_of(seed, stream)], positions, shape, device=torch.device(device))


def of_keys(
    keys: Sequence[int], positions: Int64[Tensor, " b"], shape: Sequence[int], *, device: torch.device
) -> Float[Tensor, "b *shape"]:
    """Uniform numbers of 64-bit keys, one for all positions or one for each; see `philox.numbers`."""
    return philox.numbers(keys, positions, shape, device=device, finish=_fractions)


class SeededUniforms:
    """Uniform numbers with one stream per seed; each call continues the stream of every picture.

    Args:
        seeds: one per picture.
        device: where they are made; the numbers are the same on all of them.

    Raises UserError for what is no seed, see `check_seed`.
    """

    def __init__(self, seeds: Sequence[int], *, device: torch.device) -> None:
        self.keys, self.device, self.calls = [key_of(seed, "codes") for seed in seeds], device, 0

    def __call__(self, *shape: int) -> Float[Tensor, "b *shape"]:
        """The next numbers of each picture."""
        positions = torch.full((len(self.keys),), self.calls, device=self.device)
        self.calls += 1
        return of_keys(self.keys, positions, shape, device=self.device)


def gumbel(uniform: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Standard Gumbel noise: the argmax of log-probabilities plus it is a sample (Maddison et al. 2014)."""
    return -(-uniform.log()).log()


def _fractions(first: Tensor, second: Tensor, *, out: Tensor) -> None:
    """The upper bits of each 32-bit word as the middle of one of 2**23 parts; above bit 32 lies anything."""
    for half, words in enumerate((first, second)):
        out[2 * half : 2 * half + 2] = (words & philox.WORD) >> (32 - BITS)
    out.add_(0.5).mul_(2.0**-BITS)
