"""How different pictures are from each other: those of one caption, and all of a set (Vendi score)."""

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.features import as_pictures
from ldm.metrics.mmap_tables import Rows, picked, stacked
from ldm.metrics.perceptual import NamedDistance, PictureDistance
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of, result_name


def mean_pairwise_distance(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine distance (1 - cosine, in [0, 2]) over all pairs of different rows, float64.

    The cosines of all n^2 ordered pairs add up to the squared length of the sum of the unit rows.

    Raises:
        UserError: fewer than two rows.
    """
    count = len(features)
    if count < 2:
        raise UserError(f"a pairwise distance needs at least 2 pictures, got {count}")
    return 1 - _mean_cosine(F.normalize(features.double(), dim=1).sum(0), count)


def diversity_by_caption(features: Rows, captions: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean over captions of the mean pairwise distance of the caption's pictures.

    Raises:
        UserError: a caption with a single picture.
    """
    distances = [mean_pairwise_distance(picked(features, mine)).item() for mine in _of_each(captions)]
    return torch.tensor(distances, dtype=torch.float64).mean()


def perceptual_diversity(
    pixels: Rows, captions: Int[Tensor, "n"], *, distance: PictureDistance
) -> Float[Tensor, ""]:
    """Mean over captions of the mean distance of the caption's pairs (Zhu et al. 2017, section 5).

    Args:
        pixels: the pictures, in the form that `ldm.metrics.features.Pixels` gives them.
        distance: of pairs of pictures in [-1, 1], say `Lpips` or a `PerceptualDistance`.

    Raises:
        UserError: a caption with a single picture.
    """
    means = []
    for mine in _of_each(captions):
        images = as_pictures(picked(pixels, mine)) / 127.5 - 1
        first, second = torch.combinations(torch.arange(len(mine), device=mine.device)).T
        means.append(distance(images[first], images[second]).double().mean().item())
    return torch.tensor(means, dtype=torch.float64).mean()


class CaptionDiversity(PictureMetric):
    """Cosine distance between pictures of one caption, and as a measure of large, between real ones.

    Args:
        features: name of the extractor.
        dims: how many features it gives.
    """

    references: ClassVar[tuple[Reference, ...]] = ()
    reading = "mean cosine distance of pictures of one caption (`between_real`: of any two real ones)"

    def __init__(self, *, features: str, dims: int) -> None:
        super().__init__()
        self.features = features
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.add_state("captions", [], dist_reduce_fx="cat")
        self.add_state("real_total", torch.zeros(dims, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("real_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.features,)

    def update(self, batch: Observed, *, real: bool) -> None:
        features = features_of(batch, self.features)
        if real:
            self.real_total = self.real_total + F.normalize(features.double(), dim=1).sum(0)
            self.real_count = self.real_count + len(features)
        else:
            self.generated.append(features)
            self.captions.append(batch.captions)

    def compute(self) -> dict[str, Tensor]:
        name = f"diversity_{self.features}"
        numbers = {name: diversity_by_caption(stacked(self.generated), dim_zero_cat(self.captions))}
        if self.real_count > 1:
            numbers[f"{name}_between_real"] = 1 - _mean_cosine(self.real_total, self.real_count)
        return numbers


class PerceptualDiversity(PictureMetric):
    """Perceptual distance between pictures of one caption, `diversity_<distance>`, as `diversity_lpips`.

    Looks at every pair of a caption: for the few captions that have several pictures.

    Args:
        distance: of pairs of pictures in [-1, 1].
        pixels: name of the features that are the pictures themselves, those of `ldm.metrics.features.Pixels`.
    """

    references: ClassVar[tuple[Reference, ...]] = ()
    reading = "mean distance of pictures of one caption in the maps of a network"
    against_real: ClassVar[bool] = False

    def __init__(self, *, distance: NamedDistance, pixels: str = "pixels") -> None:
        super().__init__()
        self.distance, self.pixels = distance, pixels
        self.add_state("generated", [], dist_reduce_fx="cat")
        self.add_state("captions", [], dist_reduce_fx="cat")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.pixels,)

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            self.generated.append(features_of(batch, self.pixels))
            self.captions.append(batch.captions)

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        captions = dim_zero_cat(self.captions)
        value = perceptual_diversity(stacked(self.generated), captions, distance=self.distance)
        return {f"diversity_{self.distance.name}": value}


class VendiScore(PictureMetric):
    """`vendi_<features>` of the generated pictures; read it beside as many real ones'.

    Args:
        features: name of the features.
        dims: how many numbers they are.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    reading = "how many different pictures the set amounts to: see the real ones'"
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


def vendi_score(outer: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """exp(entropy of the eigenvalues of K / n), K the cosines of all pairs (Friedman & Dieng 2023, def. 3.1).

    1 for equal pictures, n for n at right angles. K / n and the sum of the unit rows' outer products over n
    have the same eigenvalues but for zeros, and the latter is as small for many pictures as for few.

    Args:
        outer: sum over pictures of the outer product of the unit row with itself.
    """
    values = torch.linalg.eigvalsh(outer / outer.trace()).clamp(min=0)
    return torch.special.entr(values).sum().exp()


def _of_each(captions: Int[Tensor, "n"]) -> Iterator[Int[Tensor, "k"]]:
    """The numbers of each caption's pictures, where there are pairs of them."""
    for caption in captions.unique().tolist():
        mine = (captions == caption).nonzero().flatten()
        if len(mine) < 2:
            raise UserError(
                f"diversity needs at least 2 pictures a caption, caption {caption} has one: more samples"
            )
        yield mine


def _mean_cosine(unit_sum: Float[Tensor, "d"], count: int | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean cosine over ordered pairs of different rows, from the sum of the unit rows."""
    return (unit_sum.square().sum() - count) / (count * (count - 1))
