"""Randomness as a function: the same key gives the same draw, whatever was drawn before.

Order, caption choice, noise and time steps are all keyed by the seed and by a sample's position in the
endless stream of training samples. A resumed run, or one with other workers or ranks, therefore draws the
same numbers without any generator state being saved.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GOLDEN_RATIO = 0.6180339887498949


def key(seed: int, position: int, stream: str) -> int:
    """64-bit key of one draw: a hash, so that neighbouring positions share nothing."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def generator(seed: int, position: int, stream: str) -> torch.Generator:
    """CPU generator for one sample and one purpose (`stream`: "noise", "time", ...)."""
    return torch.Generator().manual_seed(key(seed, position, stream) >> 1)


def normal(shape: Sequence[int], *, seed: int, positions: Tensor, stream: str) -> Tensor:
    """Standard normal draws, one generator a sample: float32, (len(positions), *shape)."""
    rows = [torch.randn(*shape, generator=generator(seed, p, stream)) for p in positions.tolist()]
    return torch.stack(rows)


def uniform(*, seed: int, positions: Tensor, stream: str) -> Tensor:
    """Uniform draws in [0, 1), one a sample: float32, (len(positions),)."""
    draws = [key(seed, p, stream) / 2**64 for p in positions.tolist()]
    return torch.tensor(draws, dtype=torch.float64).float().clamp(max=1 - 2**-24)


def spread(*, seed: int, positions: Tensor, stream: str) -> Tensor:
    """Draws in [0, 1) that cover it evenly over any run of positions: float32, (len(positions),).

    A Weyl sequence: steps of the golden ratio from a keyed start. A batch of consecutive positions is thereby
    stratified, without a draw depending on the batch that it is in.
    """
    start = key(seed, 0, stream) / 2**64
    draws = torch.remainder(start + positions.double() * GOLDEN_RATIO, 1.0)
    return draws.float().clamp(max=1 - 2**-24)


def integer(upper: int, *, seed: int, position: int, stream: str) -> int:
    """One draw from 0 .. upper - 1."""
    return key(seed, position, stream) % upper


def permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """Order of one epoch: int64, a permutation of 0 .. size - 1."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def real(*, seed: int, position: int, stream: str) -> float:
    """One draw from [0, 1)."""
    return (key(seed, position, stream) >> 11) / 2**53
