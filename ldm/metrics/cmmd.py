"""CMMD: discrepancy of two sets of pictures in a CLIP's space (Jayasumana et al. 2024)."""

from functools import partial
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ldm.metrics.gathered import GatheredFeatures
from ldm.metrics.mmd import biased_mmd, gaussian
from ldm.metrics.names import result_name
from ldm.metrics.picture_metric import Reference
from ldm.metrics.table import Rows, unit_rows

SIGMA = 10.0  # Jayasumana et al. 2024, section 4
SCALE = 1000.0  # ditto, so that numbers read well


def cmmd(generated: Rows, real: Rows) -> Float[Tensor, ""]:
    """1000 times the squared discrepancy of unit features under a Gaussian kernel of width 10, float64.

    Pairs of a picture with itself count, as in the authors' program: never below 0.
    """
    return SCALE * biased_mmd(unit_rows(generated), unit_rows(real), kernel=partial(gaussian, sigma=SIGMA))


class Cmmd(GatheredFeatures):
    """`cmmd_<features>`. The published numbers are those of CLIP ViT-L/14 at 336 px.

    Args:
        features: name of a CLIP's picture features.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")

    def compute(self) -> dict[str, Tensor]:
        value = cmmd(self.side("generated", at_least=2).features, self.side("real", at_least=2).features)
        return {result_name("cmmd", self.features): value}
