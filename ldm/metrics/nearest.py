"""Does the text decide the picture? Whether a generated picture's nearest real picture is the right one."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of
from ldm.metrics.retrieval import ranks
from ldm.metrics.table import Rows, blocks, stacked


def nearest(queries: Float[Tensor, "q d"], gallery: Rows, *, count: int = 1) -> Int[Tensor, "q k"]:
    """Rows of the gallery nearest to each query by cosine, nearest first."""
    unit = F.normalize(queries.float(), dim=1)
    cosines = torch.cat([unit @ F.normalize(block.float(), dim=1).T for block in blocks(gallery)], dim=1)
    return cosines.topk(min(count, len(gallery)), dim=1).indices


class PictureRecall(PictureMetric):
    """Share of generated pictures with the right real picture among the k nearest of all: `r<k>_<features>`.

    By cosine of features. Real pictures that show the same thing count as wrong, so the score of the right
    pictures themselves ("real") can lie below 1.

    Args:
        features: name of the extractor.
        ks: how many of the nearest are looked at.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")

    def __init__(self, *, features: str, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__()
        self.features, self.ks = features, tuple(ks)
        for side in ("real", "generated"):
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")
            self.add_state(f"{side}_rows", [], dist_reduce_fx="cat")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.features,)

    def update(self, batch: Observed, *, real: bool) -> None:
        side = "real" if real else "generated"
        getattr(self, f"{side}_features").append(features_of(batch, self.features))
        getattr(self, f"{side}_rows").append(batch.rows)

    def compute(self) -> dict[str, Tensor]:
        found = ranks(
            stacked(self.generated_features),
            stacked(self.real_features),
            query_keys=dim_zero_cat(self.generated_rows),
            gallery_keys=dim_zero_cat(self.real_rows),
        )
        return {f"r{k}_{self.features}": (found < k).double().mean() for k in self.ks}
