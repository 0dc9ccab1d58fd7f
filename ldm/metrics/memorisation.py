"""Does the generator repeat its training pictures?"""

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, unit_rows
from ldm.metrics.neighbours import distances_to
from ldm.metrics.picture_metric import GatheredFeatures, Reference, Side, result_name

ROUNDING = 1e-6  # equal pictures come out up to this far apart


class Copies(NamedTuple):
    """Each generated picture beside its nearest real one, the nearest pair first.

    Attributes:
        generated: number of the generated picture.
        real: number of the real one.
        distance: between them, Euclidean distance of unit features, in [0, 2].
        copied: whether it is nearer than almost all real pictures are to their nearest others.
        limit: the distance below which it is, a quantile of theirs.
    """

    generated: Int[Tensor, "n"]
    real: Int[Tensor, "n"]
    distance: Float[Tensor, "n"]
    copied: Bool[Tensor, "n"]
    limit: float


def find_copies(generated: Rows, real: Rows, *, quantile: float = 0.01, limit: float | None = None) -> Copies:
    """Pairs each generated picture with its nearest real one and judges them by what real pictures are like.

    Args:
        quantile: of the distances of real pictures to their nearest others; what is strictly nearer counts as
            a copy. Where so many real pictures have a twin that the quantile is 0, nothing does.
        limit: that quantile, where it is known already: finding it is most of the work.

    Raises:
        UserError: fewer than two real pictures.
    """
    if len(real) < 2:
        raise UserError(f"memorisation needs at least 2 real pictures to judge by, got {len(real)}")
    made, seen = unit_rows(generated), unit_rows(real)
    if limit is None:
        limit = distances_to(seen, seen, count=2)[0][:, 1].quantile(quantile).item()
    distance, nearest = (found[:, 0] for found in distances_to(made, seen, count=1))
    order = distance.argsort(stable=True)
    return Copies(order, nearest[order], distance[order], distance[order] < limit - ROUNDING, limit)


class Memorisation(GatheredFeatures):
    """Share of generated pictures that are too near to a real one, `memorised_<features>`: see `find_copies`.

    The floor, held-out real pictures, is about the quantile itself.

    Args:
        features: name of the features.
        quantile: of the real pictures' own distances.
        split: whose pictures the generator was trained on; null takes all real ones.

    Attributes:
        limit: the latest result's, see `Copies`; null before there is one.
        seen: rows of the pictures that can have been copied; null where all real ones can.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor",)

    def __init__(self, *, features: str, quantile: float = 0.01, split: str | None = None) -> None:
        super().__init__(features=features)
        if not 0 < quantile < 1:
            raise UserError(f"{quantile=} of the real pictures' distances must lie between 0 and 1")
        self.quantile, self.split = quantile, split
        self.limit: float | None = None
        self.seen: Tensor | None = None

    def copies(self) -> Copies:
        """The pairs by the pictures' own numbers: those to show side by side.

        `generated` counts the generated pictures by row, then caption; `real` is the real picture's row.
        """
        made, seen = self.side("generated"), self._seen()
        found = find_copies(made.features, seen.features, quantile=self.quantile)
        return found._replace(real=seen.rows[found.real])

    def _seen(self) -> Side:
        """The real pictures that can have been copied."""
        real = self.side("real", at_least=2)
        if self.seen is None:
            return real
        mine = torch.isin(real.rows, self.seen.to(real.rows.device))
        table = replace(real.features, order=real.features.order[mine])
        return Side(table, real.rows[mine], real.captions[mine])

    def compute(self) -> dict[str, Tensor]:
        found = self.copies()
        self.limit = found.limit
        return {result_name("memorised", self.features): found.copied.double().mean()}
