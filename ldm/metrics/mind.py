"""MIND: how far one set of features is transported to another along random directions."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, as_table, blocks
from ldm.metrics.picture_metric import GatheredFeatures, Reference, result_name
from ldm.randomness import keyed

SEED = 0  # of the directions: the same for every evaluation
AT_ONCE = 2**20  # projections of a side that are held at once, 8 MB


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
