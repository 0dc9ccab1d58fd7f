"""Kernel distances of two sets of pictures: KID, and CMMD in a CLIP's space (maximum mean discrepancies)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, blocks, unit_rows
from ldm.metrics.picture_metric import GatheredFeatures, Reference, result_name

SEED = 2020  # of the subsets; torch-fidelity's
SIGMA = 10.0  # of CMMD's kernel, Jayasumana et al. 2024, section 4
SCALE = 1000.0  # of CMMD, ditto, so that numbers read well

Kernel = Callable[[Tensor, Tensor], Tensor]  # n d, m d -> n m


class KernelDistance(GatheredFeatures):
    """Mean over subsets and their standard deviation: `kid`, `kid_sd`; for others `kd_<features>`, ...

    Options as `kernel_distances`'; with subset_size=null there is no deviation.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = (
        "kernel distance in these features, lower is better; unbiased at any count: 0 for equal sets, and "
        "may fall below"
    )
    higher_is_better = False
    directions: ClassVar[Mapping[str, bool | None]] = {"_sd": None}

    def __init__(
        self, *, features: str = "inception", subsets: int = 100, subset_size: int | None = 1000
    ) -> None:
        super().__init__(features=features)
        self.subsets, self.subset_size = subsets, subset_size

    def compute(self) -> dict[str, Tensor]:
        """Mean and, of several subsets, standard deviation."""
        pair = self.side("generated").features, self.side("real").features
        found = kernel_distances(*pair, subsets=self.subsets, subset_size=self.subset_size)
        numbers = {result_name("kd", self.features): found.mean()}
        if len(found) > 1:
            numbers[result_name("kd_sd", self.features)] = found.std(correction=0)
        return numbers


class Cmmd(GatheredFeatures):
    """`cmmd_<features>` of a CLIP's picture features. Published numbers are of CLIP ViT-L/14 at 336 px."""

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = "discrepancy in a CLIP's space times 1,000, lower is better, never below 0"
    higher_is_better = False

    def compute(self) -> dict[str, Tensor]:
        """The discrepancy."""
        value = cmmd(self.side("generated", at_least=2).features, self.side("real", at_least=2).features)
        return {result_name("cmmd", self.features): value}


def kernel_distances(
    generated: Rows, real: Rows, *, subsets: int = 100, subset_size: int | None = 1000
) -> Float[Tensor, " k"]:
    """Unbiased squared discrepancy under the cubic kernel of random subsets (Binkowski et al. 2018), float64.

    Unbiased at any number of pictures, so it may fall below 0 for equal sets.

    Args:
        subsets: how many pairs of subsets are sampled, as torch-fidelity samples them.
        subset_size: pictures in each; None takes all of both sides, once.

    Raises UserError: fewer pictures than a subset takes, or than two.
    """
    counts = len(generated), len(real)
    if min(counts) < (subset_size or 2):
        raise UserError(
            f"a kernel distance of subsets of {subset_size or 'all'} pictures needs at least "
            f"{subset_size or 2} on each side, got {min(counts)}: set subset_size=null to take all"
        )
    if subset_size is None:
        return unbiased_mmd(generated, real, kernel=polynomial)
    rng = np.random.RandomState(SEED)
    sides = [torch.zeros(subsets, count, dtype=torch.bool) for count in counts]
    for number in range(subsets):  # generated pictures first in each, as torch-fidelity samples them
        for members, count in zip(sides, counts, strict=True):
            members[number, torch.from_numpy(rng.choice(count, subset_size, replace=False))] = True
    return unbiased_mmd(generated, real, kernel=polynomial, subsets=sides)


def cmmd(generated: Rows, real: Rows) -> Float[Tensor, ""]:
    """1000 times the squared discrepancy of unit features under a Gaussian kernel of width 10, float64.

    Pairs of a picture with itself count, as in the authors' program: never below 0.
    """
    return SCALE * biased_mmd(unit_rows(generated), unit_rows(real), kernel=partial(gaussian, sigma=SIGMA))


def polynomial(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x . y / d + 1)^3 (Binkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, sigma: float) -> Float[Tensor, "n m"]:
    """exp(-|x - y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * sigma**2))


def unbiased_mmd(
    x: Rows, y: Rows, *, kernel: Kernel, subsets: Sequence[Bool[Tensor, "k _"]] | None = None
) -> Float[Tensor, " k"]:
    """Squared discrepancy of each pair of subsets without the pairs of a row with itself (eq. 3), float64.

    Args:
        subsets: of x and of y, which rows are in each; None takes all rows.
    """
    of_x, of_y = subsets or (_everyone(x), _everyone(y))
    return _within(x, of_x, kernel) + _within(y, of_y, kernel) - 2 * _between(x, y, of_x, of_y, kernel)


def biased_mmd(x: Rows, y: Rows, *, kernel: Kernel) -> Float[Tensor, ""]:
    """Squared discrepancy of all of x and y, rows with themselves among the pairs (eq. 5), float64, >= 0."""
    of_x, of_y = _everyone(x), _everyone(y)
    within = _between(x, x, of_x, of_x, kernel) + _between(y, y, of_y, of_y, kernel)
    return (within - 2 * _between(x, y, of_x, of_y, kernel)).squeeze(0)


def _everyone(rows: Rows) -> Bool[Tensor, "1 n"]:
    """The membership of the one subset that has every row."""
    return torch.ones(1, len(rows), dtype=torch.bool)


def _within(x: Rows, members: Bool[Tensor, "k n"], kernel: Kernel) -> Float[Tensor, " k"]:
    """Mean kernel of different rows of each subset."""
    size, selves = members.sum(1), torch.zeros(len(members), dtype=torch.float64)
    pairs = _between(x, x, members, members, kernel) * size**2  # first: the loop's last block would stay
    for rows, here in zip(blocks(x), members.split(ROWS_AT_ONCE, dim=1), strict=True):
        selves += here.double() @ kernel(rows, rows).diagonal().cpu()
    return (pairs - selves) / (size * (size - 1))


def _between(
    x: Rows, y: Rows, of_x: Bool[Tensor, "k n"], of_y: Bool[Tensor, "k m"], kernel: Kernel
) -> Float[Tensor, " k"]:
    """Mean kernel over all pairs of each subset of x with that of y: the matrix is never held whole."""
    total = torch.zeros(len(of_x), dtype=torch.float64)
    for rows, in_rows in zip(blocks(x), of_x.split(ROWS_AT_ONCE, dim=1), strict=True):
        for columns, in_columns in zip(blocks(y), of_y.split(ROWS_AT_ONCE, dim=1), strict=True):
            total += ((in_rows.double() @ kernel(rows, columns).cpu()) * in_columns).sum(1)
    return total / (of_x.sum(1) * of_y.sum(1))
