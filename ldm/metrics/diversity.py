"""How different the pictures of one caption are from each other."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from ldm.metrics.perceptual import NamedDistance, PictureDistance
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of
from ldm.metrics.pixels import as_pictures


def mean_pairwise_distance(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine distance (1 - cosine, in [0, 2]) over all pairs of different rows, float64.

    The cosines of all n^2 ordered pairs add up to the squared length of the sum of the unit rows.

    Raises:
        ValueError: fewer than two rows.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"a pairwise distance needs at least 2 pictures, got {count}")
    return 1 - _mean_cosine(F.normalize(features.double(), dim=1).sum(0), count)


def diversity_by_caption(features: Float[Tensor, "n d"], captions: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Mean over captions of the mean pairwise distance of the caption's pictures.

    Raises:
        ValueError: a caption with a single picture.
    """
    distances = []
    for caption in captions.unique():
        mine = features[captions == caption]
        _enough(mine, caption)
        distances.append(mean_pairwise_distance(mine))
    return torch.stack(distances).mean()


def perceptual_diversity(
    images: UInt8[Tensor, "n 3 h w"], captions: Int[Tensor, "n"], *, distance: PictureDistance
) -> Float[Tensor, ""]:
    """Mean over captions of the mean distance of the caption's pairs (Zhu et al. 2017, section 5).

    Args:
        distance: of pairs of pictures in [-1, 1], say `Lpips` or a `PerceptualDistance`.

    Raises:
        ValueError: a caption with a single picture.
    """
    means = []
    for caption in captions.unique():
        mine = images[captions == caption] / 127.5 - 1
        first, second = torch.combinations(_enough(mine, caption)).T
        means.append(distance(mine[first], mine[second]).double().mean())
    return torch.stack(means).mean()


class CaptionDiversity(PictureMetric):
    """Cosine distance between pictures of one caption, and as a measure of large, between real ones.

    Args:
        features: name of the extractor.
        dims: how many features it gives.
    """

    references: ClassVar[tuple[Reference, ...]] = ()

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
        numbers = {name: diversity_by_caption(dim_zero_cat(self.generated), dim_zero_cat(self.captions))}
        if self.real_count > 1:
            numbers[f"{name}_between_real"] = 1 - _mean_cosine(self.real_total, self.real_count)
        return numbers


class PerceptualDiversity(PictureMetric):
    """Perceptual distance between pictures of one caption, `diversity_<distance>`, as `diversity_lpips`.

    Keeps the generated pictures, 12 KB each of 64 px: for the few captions that have several.

    Args:
        distance: of pairs of pictures in [-1, 1].
        pixels: name of the features that are the pictures themselves, those of `ldm.metrics.pixels.Pixels`.
    """

    references: ClassVar[tuple[Reference, ...]] = ()
    against_real: ClassVar[bool] = False

    def __init__(self, *, distance: NamedDistance, pixels: str = "pixels") -> None:
        super().__init__()
        self.distance, self.pixels = distance, pixels
        self.add_state("images", [], dist_reduce_fx="cat")
        self.add_state("captions", [], dist_reduce_fx="cat")

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.pixels,)

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            self.images.append(as_pictures(features_of(batch, self.pixels)))
            self.captions.append(batch.captions)

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        images, captions = dim_zero_cat(self.images), dim_zero_cat(self.captions)
        value = perceptual_diversity(images, captions, distance=self.distance)
        return {f"diversity_{self.distance.name}": value}


def _enough(mine: Shaped[Tensor, "n ..."], caption: Int[Tensor, ""]) -> Int[Tensor, "n"]:
    """The numbers of a caption's pictures, where there are pairs of them."""
    if len(mine) < 2:
        raise ValueError(
            f"diversity needs at least 2 pictures a caption, caption {int(caption)} has one: more samples"
        )
    return torch.arange(len(mine), device=mine.device)


def _mean_cosine(unit_sum: Float[Tensor, "d"], count: int | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Mean cosine over ordered pairs of different rows, from the sum of the unit rows."""
    return (unit_sum.square().sum() - count) / (count * (count - 1))
