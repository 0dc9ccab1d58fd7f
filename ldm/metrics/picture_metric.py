"""What every measure of generated pictures sees, and the shape that such a measure has."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from ldm import UserError

Reference = Literal["floor", "ceiling", "real"]


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


class PictureMetric(Metric):
    """A measure of generated pictures, most often against real ones.

    A new one is a file with a subclass, which says what it adds up in `update` and which names and numbers
    come out of `compute`, and a yaml in `conf/metric`. States are summed or gathered over ranks.

    Attributes:
        references: what else the measure is worth taking of. "floor": real pictures against as many
            others; "ceiling": the right pictures after the autoencoder's round trip; "real": the right
            pictures themselves.
        against_real: whether it holds generated pictures against real ones; one that doesn't can be taken
            where no real picture is there.
    """

    full_state_update: ClassVar[bool] = False
    is_differentiable: ClassVar[bool] = False
    references: ClassVar[tuple[Reference, ...]] = ()
    against_real: ClassVar[bool] = True

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
