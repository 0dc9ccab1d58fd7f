"""Distances between two sets of pictures, whose features are compared a block at a time.

KID and CMMD are maximum mean discrepancies under a kernel; MIND transports one set to the other along random
directions; the Frechet distance is taken as a ratio to that of as many real pictures.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.frechet import FrechetDistance, frechet_distance, gaussian_of
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, Table, as_table, blocks, unit_rows
from ldm.metrics.picture_metric import GatheredFeatures, Gaussian, Reference, result_name
from ldm.randomness import keyed

SUBSETS_SEED = 2020  # torch-fidelity's
SIGMA = 10.0  # of CMMD's kernel, Jayasumana et al. 2024, section 4
SCALE = 1000.0  # of CMMD, ditto, so that numbers read well
SEED = 0  # of MIND's directions and of the pictures that stand for generated ones, in every evaluation
AT_ONCE = 2**20  # projections of a side that are held at once, 8 MB

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
    rng = np.random.RandomState(SUBSETS_SEED)
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

    `subsets` of x and of y are the numbers of the rows in each; None takes all rows.
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


class Mind(GatheredFeatures):
    """Monge distance `mind_<features>` (Berthet et al. 2026), see `mind`; any features will do."""

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    higher_is_better = False
    reading = (
        "squared transport of these features along random directions, lower is better; few pictures add a "
        "bias: see the floor"
    )

    def __init__(self, *, features: str, projections: int = 1024) -> None:
        super().__init__(features=features)
        if projections < 1:
            raise UserError(f"{projections=} of MIND must be at least 1")
        self.projections = projections

    def compute(self) -> dict[str, Tensor]:
        """The distance, with at least two pictures on each side."""
        pair = [self.side(name, at_least=2).features for name in self.sides]
        return {result_name("mind", self.features): mind(*pair, projections=self.projections)}


def mind(generated: Rows, real: Rows, *, projections: int = 1024) -> Float[Tensor, ""]:
    """Mean over directions of the squared transport between projections, times the features' width, float64.

    With the width as a factor a shift of all pictures by v comes to |v|^2, and two isotropic Gaussians to
    |m1 - m2|^2 + d (s1 - s2)^2, as the Frechet distance does. It is never below 0, and 0 for equal sets.
    """
    ours, theirs = as_table(generated), as_table(real)
    width, total = ours.parts[0].shape[1], torch.zeros((), dtype=torch.float64)
    at_once = max(1, AT_ONCE // max(len(ours), len(theirs)))
    for group in orthogonal_directions(width, projections):
        for some in group.split(at_once, dim=1):
            total += transport(*(_projected(table, some) for table in (ours, theirs))).sum().cpu()
    return width * total / projections


def orthogonal_directions(width: int, count: int) -> Iterator[Float[Tensor, "d _"]]:
    """Random unit columns in groups of at most `width`, at right angles within each.

    Over a whole group the squared projections of a vector sum to its squared length, whatever the group is.
    """
    for numbers in torch.arange(count).split(width):
        columns = keyed.normal((width,), seed=SEED, positions=numbers, stream="mind").double().T
        yield torch.linalg.qr(columns).Q


def transport(x: Float[Tensor, "n k"], y: Float[Tensor, "m k"]) -> Float[Tensor, " k"]:
    """Squared 2-Wasserstein distance of each column of x to that of y; both are sorted, float64.

    Both quantile functions are steps; between two edges of either of them their difference is constant.
    """
    n, m = len(x), len(y)
    edges = torch.cat([torch.arange(n + 1) * m, torch.arange(m + 1) * n]).unique()  # in units of 1 / (n m)
    starts, widths = edges[:-1].to(x.device), edges.diff().to(x)
    return widths @ (x[starts // m] - y[starts // n]).square() / (n * m)


def _projected(rows: Rows, directions: Float[Tensor, "d k"]) -> Float[Tensor, "n k"]:
    """The coordinates of all rows along each direction, sorted."""
    return torch.cat([block @ directions.to(block.device) for block in blocks(rows)]).sort(dim=0).values


class FrechetRatio(GatheredFeatures):
    """Frechet distance over that of as many real pictures to the same others: `fd_ratio_<features>`.

    See `frechet_ratio`. It has its floor in itself, so that none is measured beside it.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling",)
    higher_is_better = False
    minimum_images: ClassVar[int] = FrechetDistance.minimum_images
    reading = (
        "Frechet distance over that of as many real pictures: 1 is as near as real ones, lower is better, "
        "and clearly below 1 points to copies"
    )

    def compute(self) -> dict[str, Tensor]:
        """The ratio, with at least two generated and four real pictures."""
        made, real = self.side("generated", at_least=2), self.side("real", at_least=4)
        return {result_name("fd_ratio", self.features): frechet_ratio(made.features, real.features)}


def frechet_ratio(generated: Rows, real: Rows) -> Float[Tensor, ""]:
    """FD(generated, others) / FD(held out, others), float64.

    Of the real pictures as many are held out as were generated, or half of all if that is less; then as many
    of the generated ones count. Both distances are thereby those of equally many pictures to the same others,
    and the bias of few pictures is in both.

    Raises UserError: fewer than two pictures on a side, or real pictures whose own distance is 0.
    """
    ours, theirs = as_table(generated), as_table(real)
    size = min(len(ours), len(theirs) // 2)
    chosen, order = _shuffled(ours, "generated")[:size], _shuffled(theirs, "real")
    others = _gaussian(theirs, order[size:])
    floor = frechet_distance(_gaussian(theirs, order[:size]), others)
    if floor == 0:
        raise UserError(
            "two halves of the real pictures have the same features, so that the distance to divide by is 0: "
            "use other pictures"
        )
    return frechet_distance(_gaussian(ours, chosen), others) / floor


def _shuffled(table: Table, side: str) -> Int[Tensor, " n"]:
    """Numbers of the rows in an order that their count and side alone decide."""
    return torch.from_numpy(keyed.permutation(SEED, 0, len(table), stream=f"fd_ratio/{side}"))


def _gaussian(table: Table, numbers: Int[Tensor, " m"]) -> Gaussian:
    """Mean and covariance of the rows with these numbers, a block at a time."""
    return gaussian_of(blocks(replace(table, order=table.order[numbers.to(table.order.device)])))
