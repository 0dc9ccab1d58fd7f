"""Clipped density and coverage: the share of good pictures, and how much of the real ones they cover."""

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import betabinom
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, nearest
from ldm.metrics.neighbours import DensityCoverage, balls_around, radii


def clipped_density_coverage(
    generated: Rows, real: Rows, *, neighbours: int = 5
) -> dict[str, Float[Tensor, ""]]:
    """Both in [0, 1], float64; each falls linearly with the share of bad pictures (Salvy et al. 2026).

    Density: in how many of k real balls a generated picture lies, at most k, over the same number of real
    pictures. No ball reaches further than the median one, so that outliers among real ones accept nothing.
    Coverage: how many of k generated pictures each real ball holds, read as the share of generated pictures
    that would have to be good for as much, see `expected_coverage`.

    Raises UserError: no more real pictures than neighbours, or fewer generated ones.
    """
    if len(generated) < neighbours:
        raise UserError(
            f"clipped coverage by k={neighbours} pictures needs at least {neighbours} generated ones, got "
            f"{len(generated)}: measure more, or lower neighbours"
        )
    reach = radii(real, neighbours=neighbours)
    short = reach.clamp(max=reach.quantile(0.5))
    own = (balls_around(real, real, short) - 1).clamp(min=0)  # each lies in its own ball, too
    density = _filled(balls_around(generated, real, short), neighbours) / _filled(own, neighbours)
    inside = nearest(real, generated, count=neighbours)[0] <= reach[:, None]
    expected = expected_coverage(generated=len(generated), real=len(real), neighbours=neighbours)
    good = np.interp(inside.double().mean().item(), expected, np.linspace(0, 1, len(expected)))
    return {"clipped_density": density.clamp(max=1), "clipped_coverage": density.new_tensor(good)}


def expected_coverage(*, generated: int, real: int, neighbours: int) -> Float[np.ndarray, " m"]:
    """Mean share of k that a real ball holds if 0, 1, ... of the generated pictures are good.

    A ball that reaches to the k-th of n - 1 others holds a mass that is Beta(k, n - k), whatever the
    distribution; the good pictures in it are therefore beta-binomial.
    """
    good = np.arange(generated + 1)
    law = betabinom(good, neighbours, real - neighbours)
    missing = [(neighbours - inside) * law.pmf(inside) for inside in range(neighbours)]
    return 1 - np.sum(missing, axis=0) / neighbours


class ClippedDensityCoverage(DensityCoverage):
    """`clipped_density_<features>` and `clipped_coverage_<features>`."""

    reading = (
        "clipped density is the share of the pictures that are as good as real ones, clipped coverage the "
        "share that would cover as much of the real ones; from 0 to 1, higher is better"
    )
    shares = staticmethod(clipped_density_coverage)


def _filled(balls: Int[Tensor, " n"], neighbours: int) -> Float[Tensor, ""]:
    """Mean over pictures of the number of balls that each lies in, over k and at most 1."""
    return (balls.double() / neighbours).clamp(max=1).mean()
