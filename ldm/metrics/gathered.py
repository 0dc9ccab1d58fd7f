"""Features of all pictures, kept for the measures that look at every pair of them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.picture_metric import Observed, PictureMetric, features_of
from ldm.metrics.table import Table, blocks, stacked


class Side(NamedTuple):
    """All pictures of one side.

    Attributes:
        rows, captions: as in `Observed`.
    """

    features: Table
    rows: Int[Tensor, "n"]
    captions: Int[Tensor, "n"]


class GatheredFeatures(PictureMetric):
    """A measure of two sets of features, which are read in blocks.

    All such measures keep the tensors that they are given: 4 bytes a number and picture once for all of them,
    8 KB with Inception's 2,048, and none of it in memory where those lie in files (`ldm.metrics.filed`).

    Args:
        features: name of the features.
    """

    def __init__(self, *, features: str) -> None:
        super().__init__()
        self.features = features
        for side in ("real", "generated"):
            for part in Side._fields:
                self.add_state(f"{side}_{part}", [], dist_reduce_fx="cat")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.features,)

    def update(self, batch: Observed, *, real: bool) -> None:
        side = "real" if real else "generated"
        kept = (features_of(batch, self.features), batch.rows, batch.captions)
        for part, values in zip(Side._fields, kept, strict=True):
            getattr(self, f"{side}_{part}").append(values)

    def side(self, name: str, *, at_least: int = 1) -> Side:
        """The pictures of one side, in an order that neither batches nor ranks decide.

        Args:
            name: "real" or "generated".
            at_least: how many there must be.

        Raises:
            UserError: fewer pictures than the measure takes.
        """
        rows = getattr(self, f"{name}_rows")  # a list of batches, or one tensor once ranks have met
        count = len(dim_zero_cat(rows)) if len(rows) else 0
        if count < at_least:
            raise UserError(
                f"{type(self).__name__} of {self.features!r} needs at least {at_least} {name} pictures, "
                f"got {count}: measure more"
            )
        table = stacked(getattr(self, f"{name}_features"))
        return _sorted(table, dim_zero_cat(rows), dim_zero_cat(getattr(self, f"{name}_captions")))


def _sorted(table: Table, rows: Int[Tensor, "n"], captions: Int[Tensor, "n"]) -> Side:
    """By row, then caption; pictures of one caption by their first feature."""
    first = torch.cat([block[:, 0].clone() for block in blocks(table)])
    keys = (first, captions, rows)  # numpy's last key counts most
    order = torch.from_numpy(np.lexsort([key.cpu().numpy() for key in keys])).to(rows.device)
    return Side(replace(table, order=order), rows[order], captions[order])
