"""Copies by the ratio of two distances: much nearer to one training picture than to any other."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.features import BOTH_WAYS
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, Table, as_table, blocks, nearest
from ldm.metrics.picture_metric import GatheredFeatures, Reference


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

    The distance to a real picture is the smaller one of the picture's and of its mirror image's.

    Args:
        generated, real: features of each picture, and behind them those of its mirror image.
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
