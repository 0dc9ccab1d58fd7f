"""A pass of FID: pictures through the Inception network, with random weights, to a Frechet distance."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.drawn_pictures import write_inception
from benchmarks.gpu.machine import Machine, largest
from benchmarks.gpu.rows import Row, bounded
from ldm.io.reading import hash_file
from ldm.metrics.features import FeatureExtractor, Pixels
from ldm.metrics.frechet import frechet_distance, gaussian_of
from ldm.metrics.networks import Inception2015

BATCH = 64
FEATURES = 1e-3  # relative


def fid(machine: Machine) -> Iterator[Row]:
    """Rows of the features' speed and parity, and of the distance of two halves of a set."""
    network = features(machine)
    pictures = torch.randint(256, (machine.scaled(1024, 16), 3, 64, 64), dtype=torch.uint8)
    few = network(pictures[:4])
    network.to(machine.device)
    there = network(pictures[:4].to(machine.device))
    yield bounded("features differ by", largest([*there.values()], [*few.values()]), FEATURES)
    name = next(iter(network.dims))

    def look() -> torch.Tensor:
        parts = (network(part.to(machine.device))[name].float().cpu() for part in pictures.split(BATCH))
        return torch.cat([*parts])

    yield Row(
        what="features", value=len(pictures) / machine.seconds(look, rounds=2, warm=1), unit="pictures/s"
    )
    halves = [gaussian_of([half]) for half in look().chunk(2)]
    distance = frechet_distance(*halves).item()
    yield Row(what="Frechet distance of two halves, random weights", value=distance)
    yield bounded(
        "Frechet distance of a half to itself", frechet_distance(*halves[:1] * 2).item(), 1e-3 * distance
    )


@torch.no_grad()
def features(machine: Machine) -> FeatureExtractor:
    """The Inception network with random weights, or pixels in a rehearsal."""
    if machine.rehearsal:
        return Pixels(size=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "inception.pth"
        write_inception(path)
        return Inception2015(weights=str(path), sha256=hash_file(path))
