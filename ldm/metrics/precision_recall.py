"""Do generated pictures lie where real ones do, and do they reach all of them?"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ldm.metrics.mmap_tables import Rows
from ldm.metrics.neighbours import balls_around, distances_to, radii
from ldm.metrics.picture_metric import GatheredFeatures, Reference, result_name


def precision_recall(generated: Rows, real: Rows, *, neighbours: int = 3) -> dict[str, Float[Tensor, ""]]:
    """Share of each side that lies in a ball of the other (Kynkaanniemi et al. 2019, eq. 1 and 2).

    The balls reach to each picture's k-th nearest neighbour of its own side.

    Raises:
        UserError: no more pictures than neighbours.
    """
    inside_real = balls_around(generated, real, radii(real, neighbours=neighbours)) > 0
    inside_generated = balls_around(real, generated, radii(generated, neighbours=neighbours)) > 0
    return {"precision": inside_real.double().mean(), "recall": inside_generated.double().mean()}


def density_coverage(generated: Rows, real: Rows, *, neighbours: int = 5) -> dict[str, Float[Tensor, ""]]:
    """How many real balls hold a generated picture, which share holds any (Naeem et al. 2020, section 3).

    Real balls alone, so that outliers among generated pictures change nothing. Density is not cut at 1.

    Raises:
        UserError: no more real pictures than neighbours.
    """
    radius = radii(real, neighbours=neighbours)
    nearest = distances_to(real, generated, count=1)[0][:, 0]
    return {
        "density": balls_around(generated, real, radius).double().mean() / neighbours,
        "coverage": (nearest <= radius).double().mean(),
    }


class PrecisionRecall(GatheredFeatures):
    """Improved precision and recall, `precision_<features>` and `recall_<features>`.

    Args:
        features: name of the features.
        neighbours: how far the balls reach.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = (
        "precision is the share of the pictures that lie where real ones do, recall the share of the real "
        "pictures that lie where those measured do; higher is better"
    )

    def __init__(self, *, features: str, neighbours: int = 3) -> None:
        super().__init__(features=features)
        self.neighbours = neighbours

    def compute(self) -> dict[str, Tensor]:
        found = precision_recall(
            self.side("generated").features, self.side("real").features, neighbours=self.neighbours
        )
        return {result_name(name, self.features): value for name, value in found.items()}


class DensityCoverage(GatheredFeatures):
    """`density_<features>` and `coverage_<features>`.

    Args:
        features: name of the features.
        neighbours: how far the balls reach.
    """

    references: ClassVar[tuple[Reference, ...]] = ("floor", "ceiling")
    reading = (
        "density is how many real pictures' neighbourhoods one lies in, against what real ones would, "
        "coverage the share of the real pictures with one in their neighbourhood; higher is better"
    )

    def __init__(self, *, features: str, neighbours: int = 5) -> None:
        super().__init__(features=features)
        self.neighbours = neighbours

    def compute(self) -> dict[str, Tensor]:
        found = density_coverage(
            self.side("generated").features, self.side("real").features, neighbours=self.neighbours
        )
        return {result_name(name, self.features): value for name, value in found.items()}
