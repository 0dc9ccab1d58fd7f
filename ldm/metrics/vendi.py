"""Vendi score: how many different pictures a set amounts to."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.names import result_name
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of


def vendi_score(outer: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """exp(entropy of the eigenvalues of K / n), K the cosines of all pairs (Friedman & Dieng 2023, def. 3.1).

    1 for equal pictures, n for n at right angles. K / n and the sum of the unit rows' outer products over n
    have the same eigenvalues but for zeros, and the latter is as small for many pictures as for few.

    Args:
        outer: sum over pictures of the outer product of the unit row with itself.
    """
    values = torch.linalg.eigvalsh(outer / outer.trace()).clamp(min=0)
    return torch.special.entr(values).sum().exp()


class VendiScore(PictureMetric):
    """`vendi_<features>` of the generated pictures; read it beside as many real ones'.

    Args:
        features: name of the features.
        dims: how many numbers they are.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False

    def __init__(self, *, features: str, dims: int) -> None:
        super().__init__()
        self.features = features
        self.add_state("outer", torch.zeros(dims, dims, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.features,)

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            unit = F.normalize(features_of(batch, self.features).double(), dim=1)
            self.outer = self.outer + unit.T @ unit

    def compute(self) -> dict[str, Tensor]:
        if self.outer.trace() == 0:
            raise UserError("a Vendi score needs at least one picture whose features are not all 0")
        return {result_name("vendi", self.features): vendi_score(self.outer)}
