"""What a metric of generated pictures sees, declares and gives, and how all of them are fed at once."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.mmap_tables import Table, blocks, stacked

Reference = Literal["floor", "ceiling", "real"]
LITERATURE = MappingProxyType(  # names that belong to the Inception of 2015 and to nothing else
    {
        ("fd", "inception"): "fid",
        ("kd", "inception"): "kid",
        ("kd_sd", "inception"): "kid_sd",
        ("is_mean", "inception_logits"): "is_mean",
        ("is_sd", "inception_logits"): "is_sd",
    }
)


class Observed(NamedTuple):
    """A batch of pictures as measures see it: by their features.

    Attributes:
        features: rows of features by extractor name; for pictures made from text also those of the text.
        rows: number of the right real picture among all real pictures (a real picture's own number).
        captions: number of the caption a picture was made from; pictures of one caption share it.
    """

    features: Mapping[str, Float[Tensor, "b _"]]
    rows: Int[Tensor, "b"]
    captions: Int[Tensor, "b"]


class Gaussian(NamedTuple):
    """Mean and covariance of features, float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


class Copies(NamedTuple):
    """Each generated picture beside its nearest real one, the nearest pair first.

    Attributes:
        generated: number of the generated picture.
        real: number of the real one.
        distance: between them, Euclidean distance of unit features, in [0, 2].
        copied: whether it is nearer than almost all real pictures are to their nearest others.
        limit: the distance below which it is, a quantile of theirs.
        features: the name of the features, and the quantile, where a metric gives the pairs.
    """

    generated: Int[Tensor, "n"]
    real: Int[Tensor, "n"]
    distance: Float[Tensor, "n"]
    copied: Bool[Tensor, "n"]
    limit: float
    features: str = ""
    quantile: float = 0.0


class PictureMetric(Metric):
    """A metric of generated pictures, most often against real ones.

    A new one is a file with a subclass, which says what it adds up in `update` and which names and numbers
    come out of `compute`, and a yaml in `conf/metric`. What it declares below is all that an evaluation and
    its report know of it. States are summed or gathered over ranks.

    Attributes:
        reading: what its numbers are and which direction is better, for the report.
        references: what else the metric is worth taking of. "floor": real pictures against as many others;
            "ceiling": the right pictures after the autoencoder's round trip; "real": the right pictures.
        against_real: whether it holds generated pictures against real ones; one that doesn't can be taken
            where no real picture is there.
        minimum_images: pictures that it wants on each side. It is taken of fewer only where a caption set's
            `few` names it, and those rows are labelled.
        accepts_statistics: whether mean and covariance of the real pictures' features can stand for them.
        split: the split whose real pictures alone it looks at; null, or one that isn't there, takes all.
        reference: those statistics, where the evaluation was given them.
        seen: rows of that split's pictures, where the evaluation found it.
    """

    full_state_update: ClassVar[bool] = False
    is_differentiable: ClassVar[bool] = False
    reading: str = ""
    references: ClassVar[tuple[Reference, ...]] = ()
    against_real: ClassVar[bool] = True
    minimum_images: ClassVar[int] = 1
    accepts_statistics: ClassVar[bool] = False
    split: str | None = None
    reference: Gaussian | None = None
    seen: Tensor | None = None

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the features that it reads."""
        raise NotImplementedError

    def update(self, batch: Observed, *, real: bool) -> None:
        """Takes in a batch of real pictures (`real=True`) or of generated ones."""
        raise NotImplementedError

    def compute(self) -> dict[str, Tensor]:
        """Numbers by name, each a tensor with one element."""
        raise NotImplementedError

    def copies_in(self, generated: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Copies | None:
        """Pairs of a generated and a real picture that the report shows; None for most metrics.

        Args:
            generated, real: tables of features by name; those that the latest result is of.
        """
        return None


Scores = dict[str, dict[str, float]]  # metric by its name in the config -> numbers by their own names


def score(
    metrics: Mapping[str, PictureMetric], *, real: Iterable[Observed], generated: Iterable[Observed]
) -> Scores:
    """Feeds both sides to every metric, a part at a time, and returns the numbers.

    Nothing is exchanged between processes: each has all the features already.

    Raises:
        UserError: two metrics with one name for their result, or a result that is not finite.
    """
    for metric in metrics.values():
        metric.reset()
        metric.distributed_available_fn = lambda: False
    for batches, is_real in ((real, True), (generated, False)):
        for batch in batches:
            for metric in metrics.values():
                metric.update(batch, real=is_real)
    scores: Scores = {}
    for key, metric in metrics.items():
        numbers = {name: float(value) for name, value in metric.compute().items()}
        for name, value in numbers.items():
            if any(name in other for other in scores.values()):
                raise UserError(f"two metrics call their result {name!r}: give one of them other features")
            if not math.isfinite(value):
                raise UserError(f"metric {name!r} came out as {value}: nothing is written")
        scores[key] = numbers
    return scores


def features_of(batch: Observed, name: str) -> Float[Tensor, "b d"]:
    """The rows of one extractor.

    Raises:
        UserError: no such extractor ran, or its features are not finite.
    """
    if name not in batch.features:
        ran = ", ".join(sorted(batch.features)) or "none"
        raise UserError(f"there are no features {name!r} to measure with; there are: {ran}")
    features = batch.features[name]
    if not features.isfinite().all():
        raise UserError(
            f"features {name!r} hold NaN or infinity: the pictures or the network's weights are broken"
        )
    return features


def result_name(measure: str, features: str) -> str:
    """`<measure>_<features>`, or the literature's name where these are the features that it means."""
    return LITERATURE.get((measure, features), f"{measure}_{features}")


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
    8 KB with Inception's 2,048, and none of it in memory where they lie in files (`ldm.metrics.mmap_tables`).

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
