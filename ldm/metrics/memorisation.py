"""Does the generator repeat its training pictures?"""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, Table, unit_rows
from ldm.metrics.neighbours import distances_to
from ldm.metrics.picture_metric import Copies, GatheredFeatures, Reference, Side, result_name

ROUNDING = 1e-6  # equal pictures come out up to this far apart


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
        split: whose pictures the generator was trained on.

    Attributes:
        limit: the latest result's, see `Copies`; null before there is one.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor",)

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
        """The pairs by the pictures' own numbers: `generated` counts the generated pictures by row, then
        caption; `real` is the real picture's row."""
        made, real = self.side("generated"), self.side("real", at_least=2)
        if self.seen is not None:
            mine = torch.isin(real.rows, self.seen.to(real.rows.device))
            table = replace(real.features, order=real.features.order[mine])
            real = Side(table, real.rows[mine], real.captions[mine])
        found = find_copies(made.features, real.features, quantile=self.quantile)
        return found._replace(real=real.rows[found.real])

    def compute(self) -> dict[str, Tensor]:
        found = self.copies()
        self.limit = found.limit
        return {result_name("memorised", self.features): found.copied.double().mean()}

    def copies_in(self, generated: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Copies | None:
        if self.limit is None:
            return None
        table = real[self.features]
        rows = torch.arange(len(table)) if self.seen is None else self.seen
        seen = Table(parts=[table], order=rows)
        found = find_copies(generated[self.features], seen, limit=self.limit)
        return found._replace(real=rows[found.real], features=self.features, quantile=self.quantile)
