"""The base classes of metrics of generated pictures, and `score`, which feeds all metrics in one pass."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.mmap_tables import Table, as_table, blocks

Reference = Literal["floor", "ceiling", "real"]
Scores = dict[str, dict[str, float]]  # metric by its name in the config -> numbers by their own names
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
    """A batch of pictures as metrics see it: by their features.

    Attributes:
        features: rows of features by name; for generated pictures also those of their texts.
        rows: number of the right real picture among all real pictures (a real picture's own number).
        captions: number of the caption that a picture was generated from; pictures of one caption share it.
    """

    features: Mapping[str, Float[Tensor, "b _"]]
    rows: Int[Tensor, "b"]
    captions: Int[Tensor, "b"]


class Gaussian(NamedTuple):
    """Mean and covariance of features, float64."""

    mean: Float[Tensor, "d"]
    covariance: Float[Tensor, "d d"]


class Copies(NamedTuple):
    """Numbers of each generated picture and its nearest real one, the nearest pair first.

    Attributes:
        distance: Euclidean distance of their unit features, in [0, 2].
        copied: whether the pair is nearer than almost all real pictures are to their nearest others.
        limit: the distance below which it is, a quantile of theirs.
        features, quantile: name of the features, and that quantile, where a metric gives the pairs.
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

    A new one is a file with a subclass, whose `update` adds batches and whose `compute` returns numbers, and
    a yaml in `conf/metric`. An evaluation and its report know nothing of it but the attributes. States are
    summed or gathered over ranks. A parameter `dims` is the width of the features.

    Attributes:
        features: name of the features, for a metric that reads one kind.
        reading: what its numbers are and which direction is better, for the report.
        references: what else is measured as a yardstick. "floor": real pictures against as many others;
            "ceiling": the right pictures after the autoencoder's round trip; "real": the right pictures.
        against_real: whether it compares generated pictures with real ones; one that doesn't needs none.
        minimum_images: pictures that it wants on each side. Fewer are accepted only where a caption set's
            `few` names the metric, and those rows are labelled.
        accepts_statistics: whether mean and covariance of the real pictures' features can stand for them.
        split: the split whose real pictures alone it reads; null, or one that isn't there, is all of them.
        reference: those statistics, where the evaluation was given them.
        seen: rows of that split's pictures, where the evaluation found it.
        higher_is_better: whether a higher number is better; None where neither direction is.
        directions: the same for those of its results that differ in it, by a part of their names.
        by_caption: of the latest result, the mean of each caption's pictures, in the order of the captions'
            numbers, by the name of the result; of results that are such means.
    """

    full_state_update: ClassVar[bool] = False
    reading: str = ""
    references: ClassVar[tuple[Reference, ...]] = ()
    against_real: ClassVar[bool] = True
    minimum_images: ClassVar[int] = 1
    accepts_statistics: ClassVar[bool] = False
    higher_is_better: bool | None = None
    directions: ClassVar[Mapping[str, bool | None]] = MappingProxyType({})
    by_caption: Mapping[str, Float[Tensor, "c"]] = MappingProxyType({})
    features: str
    split: str | None = None
    reference: Gaussian | None = None
    seen: Tensor | None = None
    sides: ClassVar = ("generated", "real")  # names of both, by `real`

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the features that it reads."""
        return (self.features,)

    @abstractmethod
    def update(self, batch: Observed, *, real: bool) -> None:
        """Adds a batch of real pictures (`real=True`) or of generated ones."""

    @abstractmethod
    def compute(self) -> dict[str, Tensor]:
        """Numbers by name, each a tensor with one element."""

    def copies_in(self, generated: Mapping[str, Tensor], real: Mapping[str, Tensor]) -> Copies | None:
        """Pairs of a generated and a real picture that the report shows; None for most metrics.

        The tables of features, by name, are those of the latest result.
        """
        return None

    def check_prompts(self, prompts: Iterable[str]) -> None:
        """Refuses prompts that the metric can't judge, before a picture is generated; most judge any."""

    def direction(self, name: str) -> bool | None:
        """Whether a higher value of the result of this name is better; None where neither direction is."""
        own = (better for part, better in self.directions.items() if part in name)
        return next(own, self.higher_is_better)

    def mean(self, name: str, values: Shaped[Tensor, "n"], captions: Int[Tensor, "n"]) -> Tensor:
        """Mean of the pictures' values, float64; keeps that of each caption in `by_caption` under a name."""
        values = values.double()
        numbers, owners = captions.unique(return_inverse=True)
        totals = values.new_zeros(len(numbers)).index_add(0, owners, values)
        self.by_caption = {**self.by_caption, name: totals / owners.bincount()}
        return values.mean()

    def add_sum(self, name: str, *shape: int) -> None:
        """Declares a state that starts at 0, float64, and is summed over ranks."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def add_lists(self, *names: str) -> None:
        """Declares states that are lists of batches and are gathered over ranks."""
        for name in names:
            self.add_state(name, [], dist_reduce_fx="cat")


class Side(NamedTuple):
    """All pictures of one side; `rows` and `captions` as in `Observed`."""

    features: Table
    rows: Int[Tensor, "n"]
    captions: Int[Tensor, "n"]


class GatheredFeatures(PictureMetric):
    """A metric of one or two sets of features, which it reads in blocks.

    All such metrics keep the tensors that they are given: 4 bytes a number and picture once for all of them,
    8 KB with Inception's 2,048, and none of it in memory where they lie in files (`ldm.metrics.mmap_tables`).
    """

    def __init__(self, *, features: str) -> None:
        super().__init__()
        self.features = features
        self.add_lists(*(f"{side}_{part}" for side in self.sides for part in Side._fields))

    def update(self, batch: Observed, *, real: bool) -> None:
        """Keeps a batch, of real pictures only where the metric compares with them."""
        if real and not self.against_real:
            return
        side, kept = self.sides[real], (features_of(batch, self.features), batch.rows, batch.captions)
        for part, values in zip(Side._fields, kept, strict=True):
            getattr(self, f"{side}_{part}").append(values)

    def side(self, name: str, *, at_least: int = 1) -> Side:
        """The pictures of one side by row, then caption, then first feature: in no order of batches or ranks.

        Args:
            name: "real" or "generated".
            at_least: how many there must be.

        Raises UserError: fewer pictures.
        """
        features, *numbers = (getattr(self, f"{name}_{part}") for part in Side._fields)
        rows, captions = (dim_zero_cat(each) if len(each) else torch.empty(0) for each in numbers)
        if len(rows) < at_least:
            raise UserError(
                f"{type(self).__name__} of {self.features!r} needs at least {at_least} {name} pictures, "
                f"got {len(rows)}: measure more"
            )
        both = (as_table(getattr(self, f"{each}_features")) for each in self.sides)
        widths = {part.shape[1] for each in both for part in each.parts}
        if len(widths) > 1:
            raise UserError(
                f"features {self.features!r} have {' and '.join(map(str, sorted(widths)))} numbers: both "
                f"sides must come from one network"
            )
        table = as_table(features)
        first = torch.cat([block[:, 0].clone() for block in blocks(table)])
        keys = (first, captions, rows)  # numpy's last key counts most
        order = torch.from_numpy(np.lexsort([key.cpu().numpy() for key in keys])).to(rows.device)
        return Side(replace(table, order=order), rows[order], captions[order])

    def seen_side(self, *, at_least: int) -> Side:
        """The real pictures that the generator was trained on, as far as `seen` is known; as `side`."""
        real = self.side("real", at_least=at_least)
        if self.seen is None:
            return real
        mine = torch.isin(real.rows, self.seen.to(real.rows.device))
        if (count := int(mine.sum())) < at_least:
            raise UserError(
                f"{type(self).__name__} of {self.features!r} needs at least {at_least} real pictures of "
                f"split {self.split!r}, got {count}: prepare a larger split"
            )
        table = replace(real.features, order=real.features.order[mine])
        return Side(table, real.rows[mine], real.captions[mine])


class PromptMetric(PictureMetric):
    """A metric of generated pictures and their own prompts; it keeps the features of both, by these names."""

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False
    higher_is_better = True

    def __init__(self, *, pictures: str, prompts: str) -> None:
        super().__init__()
        self.kinds = (pictures, prompts)
        self.add_lists("pictures", "prompts", "captions")

    @property
    def needs(self) -> tuple[str, ...]:
        """Both kinds of features."""
        return self.kinds

    def update(self, batch: Observed, *, real: bool) -> None:
        """Keeps a batch of generated pictures."""
        if not real:
            parts = (*(features_of(batch, name) for name in self.needs), batch.captions)
            for kept, part in zip((self.pictures, self.prompts, self.captions), parts, strict=True):
                kept.append(part)

    def pairs(self) -> tuple[Table, Table, Int[Tensor, "n"]]:
        """Features of all pictures, those of their prompts, and the numbers of their captions.

        Raises UserError: there is none.
        """
        if not len(self.captions):
            raise UserError(f"{type(self).__name__} of {self.kinds[0]!r} needs at least one picture")
        return as_table(self.pictures), as_table(self.prompts), dim_zero_cat(self.captions)


def score(
    metrics: Mapping[str, PictureMetric], *, real: Iterable[Observed], generated: Iterable[Observed]
) -> Scores:
    """Feeds both sides to every metric, a part at a time, and returns the numbers.

    Nothing is exchanged between processes: each has all the features already.

    Raises UserError: two metrics with one name for their result, or a result that is not finite.
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
    """The rows of one kind of features; UserError if they are missing or not finite."""
    if name not in batch.features:
        there = ", ".join(sorted(batch.features)) or "none"
        raise UserError(f"there are no features {name!r} to measure with; there are: {there}")
    features = batch.features[name]
    if not features.isfinite().all():
        raise UserError(f"features {name!r} hold NaN or infinity: pictures or network's weights are broken")
    return features


def result_name(measure: str, features: str) -> str:
    """`<measure>_<features>`, or the literature's name where these are the features that it means."""
    return LITERATURE.get((measure, features), f"{measure}_{features}")
