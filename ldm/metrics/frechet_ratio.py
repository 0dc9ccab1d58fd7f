"""Frechet distance as a ratio to its floor: that of as many real pictures to the same others."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.frechet import FrechetDistance, frechet_distance, gaussian_of
from ldm.metrics.mmap_tables import Rows, Table, as_table, blocks
from ldm.metrics.picture_metric import GatheredFeatures, Gaussian, Reference, result_name
from ldm.randomness import keyed

SEED = 0  # of the choice of real pictures that stand for the generated ones


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
