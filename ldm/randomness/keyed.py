"""Randomness as a function: the same key gives the same number, whatever came before.

Order, caption choice, noise and timesteps are all keyed by the seed and by a sample's position in the
endless stream of training samples. A resumed run, or one with other workers or ranks, therefore has the
same numbers without any generator state being saved. A single number is a hash of its key; the many numbers
of a sample's noise come from the counter-based generator of `ldm.randomness.philox`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.randomness import philox
from ldm.randomness.seeds import key_of

GOLDEN_RATIO = 0x9E3779B97F4A7C15 - 2**64  # its fraction in units of 2**-64, as int64
MANTISSA = 24  # bits of a float32: a fraction of so many is exact, and below 1


def key(seed: int, position: int, stream: str) -> int:
    """64-bit key of one number: a hash, so that neighbouring positions share nothing.

    Raises UserError for what is no seed, see `check_seed`.
    """
    return key_of(seed, stream, position)


def normal(
    shape: Sequence[int], *, seed: int, positions: Tensor, stream: str, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise of each position: float32, (len(positions), *shape), the same on every device."""
    return philox.normals([key_of(seed, stream)], positions, shape, device=torch.device(device))


def uniform(*, seed: int, positions: Tensor, stream: str) -> Tensor:
    """Uniform numbers in [0, 1), one per sample: float32, (len(positions),)."""
    fractions = [key(seed, p, stream) >> (64 - MANTISSA) for p in positions.tolist()]
    return torch.tensor(fractions, dtype=torch.float32) / 2**MANTISSA


def spread(*, seed: int, positions: Tensor, stream: str) -> Tensor:
    """Numbers in [0, 1) that cover it evenly over any run of positions: float32, (len(positions),).

    A Weyl sequence: steps of the golden ratio from a keyed start. A batch of consecutive positions is thereby
    stratified, although no number depends on its batch. Sums of int64 wrap around as they should.
    """
    start = key(seed, 0, stream) - 2**63
    fractions = (positions * GOLDEN_RATIO + start) >> (64 - MANTISSA)
    return (fractions & (2**MANTISSA - 1)).float() / 2**MANTISSA


def integer(upper: int, *, seed: int, position: int, stream: str) -> int:
    """A whole number from 0 to upper - 1."""
    return key(seed, position, stream) % upper  # some numbers are likelier by less than upper / 2**64


def permutation(seed: int, epoch: int, size: int, *, stream: str = "order") -> np.ndarray:
    """Order of one epoch: int64, a permutation of 0 .. size - 1."""
    return np.random.default_rng(key(seed, epoch, stream)).permutation(size)


def real(*, seed: int, position: int, stream: str) -> float:
    """A float64 in [0, 1)."""
    return (key(seed, position, stream) >> 11) / 2**53  # 53 bits: as many as a float64 has
