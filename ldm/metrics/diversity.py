"""How different pictures are: pairs of one caption, and entropies of a set (Vendi and Inception scores)."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.features import NamedDistance, as_pictures
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, as_table, blocks
from ldm.metrics.picture_metric import (
    GatheredFeatures,
    Observed,
    PictureMetric,
    Reference,
    features_of,
    result_name,
)


class CaptionDiversity(GatheredFeatures):
    """Cosine distance of pictures of one caption, and as its yardstick that of real pictures."""

    reading = "mean cosine distance of pictures of one caption (`between_real`: of any two real ones)"

    def __init__(self, *, features: str, dims: int) -> None:
        super().__init__(features=features)
        self.add_sum("unit_total", dims)
        self.add_sum("count")

    def update(self, batch: Observed, *, real: bool) -> None:
        """Keeps a batch of generated pictures; adds up unit features of real ones."""
        if not real:
            return super().update(batch, real=real)
        features = features_of(batch, self.features)
        self.unit_total = self.unit_total + F.normalize(features.double(), dim=1).sum(0)
        self.count = self.count + len(features)

    def compute(self) -> dict[str, Tensor]:
        """The mean distance within captions, and that between real pictures if there are two."""
        name, made = f"diversity_{self.features}", self.side("generated")
        found = within_captions(made.features, made.captions, distance=mean_pairwise_distance)
        numbers = {name: self.mean(name, found, torch.arange(len(found)))}
        if self.count > 1:
            numbers[f"{name}_between_real"] = _mean_distance(self.unit_total, self.count)
        return numbers


def mean_pairwise_distance(features: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean cosine distance (1 - cosine, in [0, 2]) over all pairs of different rows, float64."""
    return _mean_distance(F.normalize(features.double(), dim=1).sum(0), len(features))


def _mean_distance(unit_sum: Float[Tensor, "d"], count: int | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """The same from the sum of the unit rows: its squared length is the sum of all n^2 ordered cosines."""
    return 1 - (unit_sum.square().sum() - count) / (count * (count - 1))


class PerceptualDiversity(GatheredFeatures):
    """Mean distance of every pair of pictures of one caption, `diversity_<distance>`, as `diversity_lpips`.

    Args:
        distance: of pairs of pictures in [-1, 1].
        pixels: name of the features that are the pictures themselves, those of `ldm.metrics.features.Pixels`.
    """

    reading = "mean distance of pictures of one caption in the maps of a network"
    against_real: ClassVar[bool] = False

    def __init__(self, *, distance: NamedDistance, pixels: str = "pixels") -> None:
        super().__init__(features=pixels)
        self.distance = distance

    @torch.no_grad()
    def compute(self) -> dict[str, Tensor]:
        """The mean distance within captions."""
        name, made = f"diversity_{self.distance.name}", self.side("generated")
        found = within_captions(made.features, made.captions, distance=self._mean_over_pairs)
        return {name: self.mean(name, found, torch.arange(len(found)))}

    def _mean_over_pairs(self, pixels: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
        images = as_pictures(pixels) / 127.5 - 1
        first, second = torch.combinations(torch.arange(len(images), device=images.device)).T
        return self.distance(images[first], images[second]).double().mean()


def within_captions(
    rows: Rows, captions: Int[Tensor, "n"], *, distance: Callable[[Tensor], Tensor]
) -> Float[Tensor, "c"]:
    """The distance within the rows of each caption, by its number (Zhu et al. 2017, section 5).

    Raises UserError: a caption with a single picture.
    """
    table, found = as_table(rows), []
    for caption in captions.unique().tolist():
        mine = (captions == caption).nonzero().flatten()
        if len(mine) < 2:
            raise UserError(f"diversity needs at least 2 pictures a caption, caption {caption} has one")
        found.append(distance(table.block(mine)).cpu())
    return torch.stack(found)


class VendiScore(PictureMetric):
    """`vendi_<features>` of the generated pictures; read it beside that of as many real ones."""

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    reading = "how many different pictures the set amounts to: see the real ones'"
    against_real: ClassVar[bool] = False

    def __init__(self, *, features: str, dims: int) -> None:
        super().__init__()
        self.features = features
        self.add_sum("outer", dims, dims)

    def update(self, batch: Observed, *, real: bool) -> None:
        """Adds up the outer products of unit features of generated pictures."""
        if not real:
            unit = F.normalize(features_of(batch, self.features).double(), dim=1)
            self.outer = self.outer + unit.T @ unit

    def compute(self) -> dict[str, Tensor]:
        """The score."""
        if self.outer.trace() == 0:
            raise UserError("a Vendi score needs at least one picture whose features are not all 0")
        return {result_name("vendi", self.features): vendi_score(self.outer)}


def vendi_score(outer: Float[Tensor, "d d"]) -> Float[Tensor, ""]:
    """exp(entropy of the eigenvalues of K / n), K the cosines of all pairs (Friedman & Dieng 2023, def. 3.1).

    1 for equal pictures, n for n at right angles. But for zeros, K / n has the eigenvalues of
    `outer` / n, the sum of the unit rows' outer products, which is as small for many pictures as for few.
    """
    values = torch.linalg.eigvalsh(outer / outer.trace()).clamp(min=0)
    return torch.special.entr(values).sum().exp()


class InceptionScore(GatheredFeatures):
    """Inception Score, `is_mean` and `is_sd`; `is_mean_<features>` and so on of another classifier's logits.

    Compares with no real picture: read it beside the real pictures' own. `features` names the logits.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False
    higher_is_better = True
    directions: ClassVar[Mapping[str, bool | None]] = {"is_sd": None}

    def __init__(self, *, features: str = "inception_logits", splits: int = 10) -> None:
        super().__init__(features=features)
        self.splits = splits
        self.reading = (
            f"Inception Score, mean and deviation over {splits} parts, higher is better; falls with the "
            f"count: see the real ones'"
        )

    def compute(self) -> dict[str, Tensor]:
        """Mean and standard deviation of the scores of all parts."""
        logits = self.side("generated", at_least=self.splits).features
        found = inception_scores(logits, splits=self.splits)
        spread = {"is_mean": found.mean(), "is_sd": found.std(correction=0)}
        return {result_name(name, self.features): value for name, value in spread.items()}


def inception_scores(logits: Rows, *, splits: int = 10, seed: int = 2020) -> Float[Tensor, " s"]:
    """exp(E_x KL(p(y|x) || p(y))) of each part of a shuffled set (Salimans et al. 2016, section 4), float64.

    In [1, c]. It falls with the number of pictures in a part, so scores of different counts don't compare.

    Args:
        splits: into how many parts the set is cut; each must get a picture.
        seed: of the shuffle; this one and the cuts are torch-fidelity's.
    """
    count = len(logits)
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count))
    edges = [part * count // splits for part in range(splits + 1)]
    parts = torch.empty(count, dtype=torch.long)  # which one each picture is in
    for part, (start, stop) in enumerate(pairwise(edges)):
        parts[order[start:stop]] = part
    # mean over x of sum_y p log p, minus sum_y m log m with m the mean of p: sums over blocks are enough
    certainty, total = torch.zeros(splits, dtype=torch.float64), 0
    for rows, owners in zip(blocks(logits), parts.split(ROWS_AT_ONCE), strict=True):
        log_p = rows.log_softmax(1).cpu()
        p = log_p.exp()
        certainty.index_add_(0, owners, (p * log_p).sum(1))
        total = total + p.new_zeros(splits, p.shape[1]).index_add(0, owners, p)
    sizes = parts.bincount(minlength=splits)
    return (certainty / sizes + torch.special.entr(total / sizes[:, None]).sum(1)).exp()
