"""Kernel distance between two sets of pictures, KID where the features are Inception's."""

from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.gathered import GatheredFeatures
from ldm.metrics.mmd import polynomial, unbiased_mmd
from ldm.metrics.names import result_name
from ldm.metrics.picture_metric import Reference
from ldm.metrics.table import Rows

SEED = 2020  # of the draw of subsets; torch-fidelity's


def kernel_distances(
    generated: Rows, real: Rows, *, subsets: int = 100, subset_size: int | None = 1000
) -> Float[Tensor, " k"]:
    """Unbiased squared discrepancy under the cubic kernel of random subsets (Binkowski et al. 2018), float64.

    Unbiased at any number of pictures, so it may fall below 0 for equal sets.

    Args:
        subsets: how many pairs of subsets are drawn, as torch-fidelity draws them.
        subset_size: pictures in each; None takes all of both sides, once.

    Raises:
        UserError: fewer pictures than a subset takes, or than two.
    """
    smallest = min(len(generated), len(real))
    if smallest < (subset_size or 2):
        raise UserError(
            f"a kernel distance of subsets of {subset_size or 'all'} pictures needs at least "
            f"{subset_size or 2} on each side, got {smallest}: set subset_size=null to take all"
        )
    pair = _subsets((len(generated), len(real)), subsets, subset_size)
    return unbiased_mmd(generated, real, kernel=polynomial, subsets=pair)


def _subsets(
    counts: tuple[int, int], subsets: int, size: int | None
) -> tuple[Int[Tensor, "k s"], Int[Tensor, "k t"]]:
    """The numbers of the rows in each subset of either side."""
    if size is None:
        return tuple(torch.arange(count)[None] for count in counts)
    draw = np.random.RandomState(SEED)
    drawn = [  # copies: what numpy draws is a view of a permutation of all
        [draw.choice(count, size, replace=False).copy() for count in counts] for _ in range(subsets)
    ]
    return tuple(torch.from_numpy(np.stack(side)) for side in zip(*drawn, strict=True))


class KernelDistance(GatheredFeatures):
    """Mean over subsets and their standard deviation: `kid`, `kid_sd`; for others `kd_<features>`, ...

    Args:
        features: name of the features.
        subsets: how many are drawn.
        subset_size: pictures in each; null takes all pictures at once and has no deviation.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")

    def __init__(
        self, *, features: str = "inception", subsets: int = 100, subset_size: int | None = 1000
    ) -> None:
        super().__init__(features=features)
        self.subsets, self.subset_size = subsets, subset_size

    def compute(self) -> dict[str, Tensor]:
        found = kernel_distances(
            self.side("generated").features,
            self.side("real").features,
            subsets=self.subsets,
            subset_size=self.subset_size,
        )
        numbers = {result_name("kd", self.features): found.mean()}
        if len(found) > 1:
            numbers[result_name("kd_sd", self.features)] = found.std(correction=0)
        return numbers
