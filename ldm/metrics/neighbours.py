"""Metrics of nearest neighbours: do generated pictures lie near real ones, reach all of them, copy them?"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.features import BOTH_WAYS
from ldm.metrics.mmap_tables import (
    ROWS_AT_ONCE,
    Rows,
    Table,
    as_table,
    blocks,
    distances_to,
    nearest,
    unit_rows,
)
from ldm.metrics.picture_metric import Copies, GatheredFeatures, Reference, result_name

ROUNDING = 1e-6  # distances of equal pictures are below this
SURFACE = 1e-9  # of a radius: the distance from a to b may be rounded otherwise than that from b to a


def radii(points: Rows, *, neighbours: int) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other one, float64; UserError where there is none."""
    if len(points) <= neighbours:
        raise UserError(
            f"k={neighbours} nearest neighbours need more than {neighbours} pictures, got {len(points)}"
        )
    return nearest(points, points, count=neighbours + 1)[0][:, -1]  # the first is the point itself


def balls_around(points: Rows, centres: Rows, radius: Float[Tensor, "m"]) -> Int[Tensor, "n"]:
    """How many of the balls each point lies in, their surface included."""
    radius = radius * (1 + SURFACE)
    counts = [
        sum((gaps <= radius[at : at + gaps.shape[1]]).sum(1) for at, gaps in distances_to(rows, centres))
        for rows in blocks(points)
    ]
    return torch.cat(counts)


def precision_recall(generated: Rows, real: Rows, *, neighbours: int = 3) -> dict[str, Float[Tensor, ""]]:
    """Share of each side that lies in a ball of the other (Kynkaanniemi et al. 2019, eq. 1 and 2).

    The balls reach to each picture's k-th nearest neighbour of its own side.

    Raises UserError: no more pictures than neighbours.
    """
    inside_real = balls_around(generated, real, radii(real, neighbours=neighbours)) > 0
    inside_generated = balls_around(real, generated, radii(generated, neighbours=neighbours)) > 0
    return {"precision": inside_real.double().mean(), "recall": inside_generated.double().mean()}


def density_coverage(generated: Rows, real: Rows, *, neighbours: int = 5) -> dict[str, Float[Tensor, ""]]:
    """How many real balls hold a generated picture, which share holds any (Naeem et al. 2020, section 3).

    Real balls alone, so that outliers among generated pictures change nothing. Density is not cut at 1.

    Raises UserError: no more real pictures than neighbours.
    """
    radius = radii(real, neighbours=neighbours)
    closest = nearest(real, generated, count=1)[0][:, 0]
    return {
        "density": balls_around(generated, real, radius).double().mean() / neighbours,
        "coverage": (closest <= radius).double().mean(),
    }


class PrecisionRecall(GatheredFeatures):
    """Improved precision and recall, `precision_<features>` and `recall_<features>`."""

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = (
        "precision is the share of the pictures that lie where real ones do, recall the share of the real "
        "pictures that lie where those measured do; higher is better"
    )
    higher_is_better = True
    shares = staticmethod(precision_recall)

    def __init__(self, *, features: str, neighbours: int = 3) -> None:
        super().__init__(features=features)
        if neighbours < 1:
            raise UserError(f"{neighbours=} must be at least 1")
        self.neighbours = neighbours

    def compute(self) -> dict[str, Tensor]:
        """Both shares."""
        pair = self.side("generated").features, self.side("real").features
        found = self.shares(*pair, neighbours=self.neighbours)
        return {result_name(name, self.features): value for name, value in found.items()}


class DensityCoverage(PrecisionRecall):
    """`density_<features>` and `coverage_<features>`."""

    reading = (
        "density is how many real pictures' neighbourhoods one lies in, against what real ones would, "
        "coverage the share of the real pictures with one in their neighbourhood; higher is better"
    )
    shares = staticmethod(density_coverage)

    def __init__(self, *, features: str, neighbours: int = 5) -> None:
        super().__init__(features=features, neighbours=neighbours)


def find_copies(generated: Rows, real: Rows, *, quantile: float = 0.01, limit: float | None = None) -> Copies:
    """Pairs each generated picture with its nearest real one and compares their distance with real pictures'.

    Args:
        quantile: of the distances of real pictures to their nearest others; what is strictly nearer counts as
            a copy. Where so many real pictures have a twin that the quantile is 0, nothing does.
        limit: that quantile, where it is known already: finding it is most of the work.

    Raises UserError: fewer than two real pictures.
    """
    if len(real) < 2:
        raise UserError(f"memorisation needs at least 2 real pictures to judge by, got {len(real)}")
    generated, real = unit_rows(generated), unit_rows(real)
    if limit is None:
        limit = nearest(real, real, count=2)[0][:, 1].quantile(quantile).item()
    distance, number = (found[:, 0] for found in nearest(generated, real, count=1))
    order = distance.argsort(stable=True)
    return Copies(order, number[order], distance[order], distance[order] < limit - ROUNDING, limit)


class Memorisation(GatheredFeatures):
    """Share of generated pictures that are too near to a real one, `memorised_<features>`: see `find_copies`.

    The floor, held-out real pictures, is about the quantile itself.

    Args:
        quantile: of the real pictures' own distances.
        split: whose pictures the generator was trained on.

    Attributes:
        limit: the latest result's, see `Copies`; None before there is one.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor",)
    higher_is_better = False

    def __init__(self, *, features: str, quantile: float = 0.01, split: str | None = None) -> None:
        super().__init__(features=features)
        if not 0 < quantile < 1:
            raise UserError(f"{quantile=} of the real pictures' distances must lie between 0 and 1")
        self.quantile, self.split = quantile, split
        self.limit: float | None = None
        self.reading = (
            f"share nearer to a training picture than {1 - quantile:.0%} of these are to each other, lower "
            f"is better: see the floor"
        )

    def copies(self) -> Copies:
        """The pairs; `generated` counts the pictures by row, then caption, `real` is the picture's row."""
        made, real = self.side("generated"), self.seen_side(at_least=2)
        found = find_copies(made.features, real.features, quantile=self.quantile)
        return found._replace(real=real.rows[found.real])

    def compute(self) -> dict[str, Tensor]:
        """The share of copies; keeps the limit."""
        found = self.copies()
        self.limit = found.limit
        return {result_name("memorised", self.features): found.copied.double().mean()}

    def copies_in(self, generated: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Copies | None:
        """Pairs of the latest limit, or None before there is one."""
        if self.limit is None:
            return None
        table = real[self.features]
        rows = torch.arange(len(table)) if self.seen is None else self.seen
        seen = Table(parts=[table], order=rows)
        found = find_copies(generated[self.features], seen, limit=self.limit)
        return found._replace(real=rows[found.real], features=self.features, quantile=self.quantile)


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
    from scipy.stats import betabinom  # seconds that the other metrics here do without

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


class NearestRatio(NamedTuple):
    """What `nearest_ratio` finds for each generated picture.

    Attributes:
        ratio: distance to the nearest real picture over that to the second, in [0, 1].
        mirrored: whether it is nearer as its mirror image.
        real: number of the nearest real picture.
    """

    ratio: Float[Tensor, " n"]
    mirrored: Bool[Tensor, " n"]
    real: Int[Tensor, " n"]


class CopiedShare(GatheredFeatures):
    """Share of copies `copied_<features>`, of mirrored ones, and the median ratio `copy_ratio_<features>`.

    A copy is a picture whose distance to the nearest training picture is below a third of that to the second
    (Yoon et al. 2023; Bonnaire et al. 2025). Unlike `Memorisation` it needs no threshold that the real
    pictures set: what is near to many pictures is no copy of one. It is blind to copies of a picture that has
    a near twin in the training set; an exact copy counts all the same.

    Args:
        features: of pictures and of their mirror images, those of `ldm.metrics.features.BothWays`.
        limit: of the ratio.
        split: whose pictures the generator was trained on.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor",)
    higher_is_better = False
    directions: ClassVar[Mapping[str, bool | None]] = {"copy_ratio": True}

    def __init__(self, *, features: str, limit: float = 1 / 3, split: str | None = None) -> None:
        super().__init__(features=features)
        if not 0 < limit < 1:
            raise UserError(f"{limit=} of the ratio of two distances must lie between 0 and 1")
        if not features.endswith(BOTH_WAYS):
            raise UserError(
                f"{features=} say nothing of mirrored pictures: copies are searched in features of the "
                f"extractor ldm.metrics.features.BothWays, whose name ends with {BOTH_WAYS}"
            )
        self.limit, self.split = limit, split
        self.reading = (
            f"copied is the share nearer to one training picture than {limit:.2g} of the distance to any "
            f"other, mirrored or not, lower is better: see the floor; copy_ratio is the median of that ratio"
        )

    def compute(self) -> dict[str, Tensor]:
        """The shares of all generated pictures, and the median."""
        made = self.side("generated")
        found = nearest_ratio(made.features, self.seen_side(at_least=2).features)
        kind, copied = self.features.removesuffix(BOTH_WAYS), found.ratio < self.limit
        shares = {f"copied_{kind}": copied, f"copied_mirrored_{kind}": copied & found.mirrored}
        numbers = {name: self.mean(name, share, made.captions) for name, share in shares.items()}
        return {**numbers, f"copy_ratio_{kind}": found.ratio.quantile(0.5)}


def nearest_ratio(generated: Rows, real: Rows) -> NearestRatio:
    """Ratio of each generated picture's distances to its two nearest real ones; 0 for an exact copy.

    The distance to a real picture is the smaller one of the picture's and of its mirror image's, whose
    features stand behind its own.
    """
    theirs = _way(real, 0)
    distances, numbers = [], []
    for ours in (_way(generated, 0), _way(generated, 1)):
        found = nearest(ours, theirs, count=2)[1]
        numbers.append(found)
        distances.append(torch.cat([*_distances(ours, theirs, found)]))
    gaps, owners = torch.cat(distances, dim=1), torch.cat(numbers, dim=1)  # n 4: two as it is, two mirrored
    first, place = gaps.min(dim=1, keepdim=True)
    real_number = owners.gather(1, place)
    second = gaps.masked_fill(owners == real_number, torch.inf).amin(dim=1, keepdim=True)
    ratio = torch.where(first == 0, first, first / second)
    return NearestRatio(ratio.squeeze(1), place.squeeze(1) >= 2, real_number.squeeze(1))


def _way(rows: Rows, mirrored: int) -> Table:
    """The first half of the columns, or the second, which are the mirror images'."""
    table = as_table(rows)
    return replace(table, parts=[part.chunk(2, dim=1)[mirrored] for part in table.parts])


def _distances(points: Table, others: Table, numbers: Int[Tensor, "n k"]) -> Iterator[Float[Tensor, "_ k"]]:
    """Distances of each point to the others with these numbers, from differences: 0 where they are equal."""
    for rows, own in zip(blocks(points), numbers.split(ROWS_AT_ONCE), strict=True):
        yield torch.stack([(rows - others.block(column)).norm(dim=1) for column in own.T], dim=1)
