"""What an autoencoder does to pictures: the round trip, and the numbers that it comes to."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.evaluation.pictures import Pictures
from ldm.evaluation.reference_set import BATCH
from ldm.evaluation.result_types import Row
from ldm.metrics.features import FeatureExtractor, NamedDistance
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.reconstruction import Reconstruction

FRECHET = "rf"  # how its results' names begin: rfid, rfd_<features>


def reconstruct(
    through: Callable[[Tensor], Tensor],
    pictures: Pictures,
    *,
    extractor: FeatureExtractor | None = None,
    distances: Iterable[NamedDistance] = (),
    device: torch.device | None = None,
    progress: bool = True,
) -> list[Row]:
    """PSNR, SSIM and perceptual distances of the round trip, and the Frechet distance of both sets.

    Args:
        through: pictures through the autoencoder and back, uint8 to uint8.
        extractor: network whose features the Frechet distance is taken in: `rfid` with the Inception of 2015,
            else `rfd_<features>`; without one there is no such row.
        distances: of pairs of pictures, each with a row of its own name.
        device: where the distances are.
    """
    metric = Reconstruction(distances={each.name: each for each in distances}, extractor=extractor)
    metric.distributed_available_fn = lambda: False
    with (
        torch.no_grad(),
        tqdm(total=len(pictures), desc="autoencoder", unit="picture", disable=not progress) as bar,
    ):
        for start in range(0, len(pictures), BATCH):
            numbers = range(start, min(start + BATCH, len(pictures)))
            originals = torch.stack([pictures.image(number) for number in numbers])
            metric.update(through(originals).to(device), originals.to(device))
            bar.update(len(numbers))
    return [
        Row(
            set="autoencoder",
            metric=name,
            value=float(value),
            reading=metric.readings[name],
            images=len(pictures),
            few=name.startswith(FRECHET) and len(pictures) < FrechetDistance.minimum_images,
        )
        for name, value in metric.compute().items()
    ]
