"""Frechet distance between two sets of pictures, each taken as a Gaussian in feature space."""

from collections.abc import Iterable
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ldm import UserError
from ldm.metrics.picture_metric import Gaussian, Observed, PictureMetric, Reference, features_of, result_name


class Moments(NamedTuple):
    """Sums that give a mean and a covariance; they add up over batches, ranks and files."""

    count: Float[Tensor, ""]
    total: Float[Tensor, "d"]
    outer: Float[Tensor, "d d"]

    @classmethod
    def of(cls, features: Float[Tensor, "n d"]) -> "Moments":
        """The sums over rows of features, float64."""
        rows = features.double()
        count = torch.tensor(float(len(rows)), dtype=torch.float64, device=rows.device)
        return cls(count=count, total=rows.sum(0), outer=rows.T @ rows)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; UserError for fewer than two pictures."""
        if self.count < 2:
            raise UserError(f"Frechet distances need at least 2 pictures on each side, got {int(self.count)}")
        mean = self.total / self.count
        return Gaussian(mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1))


def gaussian_of(parts: Iterable[Float[Tensor, "_ d"]]) -> Gaussian:
    """Mean and covariance of all rows together, summed in float64; UserError for fewer than two rows."""
    moments = map(Moments.of, parts)
    return reduce(lambda first, second: Moments(*map(torch.add, first, second)), moments).gaussian()


def frechet_distance(first: Gaussian, second: Gaussian) -> Float[Tensor, ""]:
    """|m1 - m2|^2 + tr(S1) + tr(S2) - 2 tr((S1 S2)^(1/2)) (Heusel et al. 2017, section 4), float64.

    With S = F F^T the last trace is the sum of the singular values of F1^T F2: no matrix root of a product
    that rounding has made indefinite, nothing imaginary, 0 to rounding for equal sets, however few pictures.
    """
    between_means = (first.mean - second.mean).square().sum()
    spreads = first.covariance.trace() + second.covariance.trace()
    shared = torch.linalg.svdvals(_factor(first.covariance).T @ _factor(second.covariance)).sum()
    return (between_means + spreads - 2 * shared).clamp(min=0)


def _factor(covariance: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """F with F F^T = covariance, as narrow as the covariance's rank."""
    alive = covariance.diagonal() > 0  # a feature that never moves costs time, and LAPACK may fail over many
    if not alive.any():
        return covariance.new_zeros(len(covariance), 0)
    matrix = covariance[alive][:, alive]
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:  # too many equal values; its singular values are the same ones
        vectors, values, _ = torch.linalg.svd(matrix)
    noise = values.amax() * len(values) * torch.finfo(values.dtype).eps
    kept = values > noise  # the root of a rounding error of 1e-16 would count as 1e-8
    factor = covariance.new_zeros(len(covariance), int(kept.sum()))
    factor[alive] = vectors[:, kept] * values[kept].sqrt()
    return factor


class FrechetDistance(PictureMetric):
    """Frechet distance of generated to real pictures: `fid` of the Inception of 2015, else `fd_<features>`.

    Finite for fewer pictures than features' `dims`, and then mostly bias: read it beside its floor.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    minimum_images: ClassVar[int] = 2048  # Inception's dimensions: of fewer the covariance is singular
    accepts_statistics: ClassVar[bool] = True
    reading = "Frechet distance in these features, lower is better; few pictures add a bias: see the floor"
    higher_is_better = False

    def __init__(self, *, features: str, dims: int) -> None:
        super().__init__()
        self.features, self.dims = features, dims
        for side in self.sides:
            self.add_sum(f"{side}_count")
            self.add_sum(f"{side}_total", dims)
            self.add_sum(f"{side}_outer", dims, dims)

    @property
    def name(self) -> str:
        """The name of its result."""
        return result_name("fd", self.features)

    def update(self, batch: Observed, *, real: bool) -> None:
        """Adds the sums of a batch."""
        features = features_of(batch, self.features)
        if features.shape[1] != self.dims:
            raise UserError(
                f"features {self.features!r} have {features.shape[1]} numbers, metric.dims is {self.dims}"
            )
        for name, value in Moments.of(features)._asdict().items():
            state = f"{self.sides[real]}_{name}"
            setattr(self, state, getattr(self, state) + value)

    def compute(self) -> dict[str, Tensor]:
        """The distance to the real pictures, or to their statistics."""
        generated, real = (
            Moments(*(getattr(self, f"{side}_{name}") for name in Moments._fields)) for side in self.sides
        )
        return {self.name: frechet_distance(generated.gaussian(), self.reference or real.gaussian())}
