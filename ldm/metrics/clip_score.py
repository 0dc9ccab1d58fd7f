"""Agreement of pictures with their text, by cosine in a CLIP's space."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of


def pair_cosines(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """Cosine of each picture with its own text, float64, not scaled and not cut at 0."""
    return (F.normalize(images.double(), dim=1) * F.normalize(texts.double(), dim=1)).sum(1)


class ClipScore(PictureMetric):
    """Mean cosine of pictures and their prompts (after Hessel et al. 2021, without their factor of 2.5).

    Named by the CLIP that judges. One that also conditions the generator flatters it: read the score beside
    the real pictures' with the same captions, and never beside another CLIP's.

    Args:
        clip: name of the CLIP; its features are `<clip>_image` and `<clip>_text`.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False

    def __init__(self, *, clip: str) -> None:
        super().__init__()
        self.clip = clip
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.clip}_image", f"{self.clip}_text")

    def update(self, batch: Observed, *, real: bool) -> None:
        if real:  # real pictures have many captions; those of the drawn captions come as their own reference
            return
        cosines = pair_cosines(
            features_of(batch, f"{self.clip}_image"), features_of(batch, f"{self.clip}_text")
        )
        self.total = self.total + cosines.sum()
        self.count = self.count + len(cosines)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise UserError("a CLIP score needs at least one picture")
        return {f"{self.clip}_score": self.total / self.count}
