"""Kernel distances of two sets of pictures: KID, and CMMD in a CLIP's space (maximum mean discrepancies)."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, blocks, unit_rows
from ldm.metrics.picture_metric import GatheredFeatures, Reference, result_name

SEED = 2020  # of the subsets; torch-fidelity's
SIGMA = 10.0  # of CMMD's kernel, Jayasumana et al. 2024, section 4
SCALE = 1000.0  # of CMMD, ditto, so that numbers read well
SUBSETS_AT_ONCE = 8  # bounds the memory of their product with all rows; more give it the same bits

Kernel = Callable[[Tensor, Tensor], Tensor]  # n d, m d -> n m


class KernelDistance(GatheredFeatures):
    """Mean over subsets and their standard deviation: `kid`, `kid_sd`; for others `kd_<features>`, ...

    Args:
        features: name of the features.
        subsets: how many are drawn.
        subset_size: pictures in each; null takes all pictures at once and has no deviation.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = (
        "kernel distance in these features, lower is better; unbiased at any count: 0 for equal sets, and "
        "may fall below"
    )

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


class Cmmd(GatheredFeatures):
    """`cmmd_<features>`. The published numbers are those of CLIP ViT-L/14 at 336 px.

    Args:
        features: name of a CLIP's picture features.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = "discrepancy in a CLIP's space times 1,000, lower is better, never below 0"

    def compute(self) -> dict[str, Tensor]:
        value = cmmd(self.side("generated", at_least=2).features, self.side("real", at_least=2).features)
        return {result_name("cmmd", self.features): value}


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
    x: Rows, y: Rows, *, kernel: Kernel, subsets: tuple[Int[Tensor, "k s"], Int[Tensor, "k t"]]
) -> Float[Tensor, " k"]:
    """Squared discrepancy of each pair of subsets without the pairs of a row with itself (eq. 3), float64.

    Args:
        subsets: of x and of y, the numbers of the rows that are in each; none is there twice.
    """
    of_x, of_y = subsets
    return _within(x, of_x, kernel) + _within(y, of_y, kernel) - 2 * _between(x, y, of_x, of_y, kernel)


def biased_mmd(x: Rows, y: Rows, *, kernel: Kernel) -> Float[Tensor, ""]:
    """Squared discrepancy of all of x and y, rows with themselves among the pairs (eq. 5), float64, >= 0."""
    all_x, all_y = (torch.arange(len(rows))[None] for rows in (x, y))
    within = _between(x, x, all_x, all_x, kernel) + _between(y, y, all_y, all_y, kernel)
    return (within - 2 * _between(x, y, all_x, all_y, kernel)).squeeze(0)


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


def _within(x: Rows, subsets: Int[Tensor, "k s"], kernel: Kernel) -> Float[Tensor, " k"]:
    """Mean kernel of different rows of each subset."""
    size = subsets.shape[1]
    own = torch.cat([_with_itself(block, kernel) for block in blocks(x)]).to(subsets.device)
    sums = torch.cat([_members(part, 0, len(own)) @ own for part in subsets.split(SUBSETS_AT_ONCE)])
    pairs = _between(x, x, subsets, subsets, kernel) * size**2 - sums
    return pairs / (size * (size - 1))


def _with_itself(rows: Float[Tensor, "b d"], kernel: Kernel) -> Float[Tensor, "b"]:
    """Kernel of each row with itself."""
    return torch.cat([kernel(row[None], row[None])[0] for row in rows])


def _between(
    x: Rows, y: Rows, of_x: Int[Tensor, "k s"], of_y: Int[Tensor, "k t"], kernel: Kernel
) -> Float[Tensor, " k"]:
    """Mean kernel over all pairs of each subset of x with that of y: the matrix is never held whole."""
    total = torch.zeros(len(of_x), dtype=torch.float64, device=of_x.device)
    for rows, in_rows in _with_members(x, of_x):
        for columns, in_columns in _with_members(y, of_y):
            values = kernel(rows, columns).to(total.device)
            total += ((in_rows @ values) * in_columns).sum(1)
    return total / (of_x.shape[1] * of_y.shape[1])


def _with_members(
    rows: Rows, subsets: Int[Tensor, "k s"]
) -> Iterator[tuple[Float[Tensor, "b d"], Float[Tensor, "k b"]]]:
    """Each block of rows, and which of them are in each subset."""
    start = 0
    for block in blocks(rows):
        yield block, _members(subsets, start, start + len(block))
        start += len(block)


def _members(subsets: Int[Tensor, "k s"], start: int, stop: int) -> Float[Tensor, "k b"]:
    """Which of the rows from one number to another are in each subset: 1 for a member, 0 for the others."""
    number, place = ((subsets >= start) & (subsets < stop)).nonzero(as_tuple=True)
    members = torch.zeros(len(subsets), stop - start, dtype=torch.float64, device=subsets.device)
    members[number, subsets[number, place] - start] = 1
    return members
