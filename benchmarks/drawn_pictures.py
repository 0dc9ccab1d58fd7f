"""Random pictures, and random weights in the published format, for benchmarks of metrics."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ldm.metrics.networks import Inception2015, inception_2015

BATCH = 32


def write_inception(path: Path) -> None:
    """A state in the format of the published one: random, with batch norms that keep its features alive."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = inception_2015()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the running statistics become the batch's
        blobs = interpolate(torch.rand(8, 3, 6, 6), (Inception2015.size,) * 2, mode="bicubic")
        with torch.no_grad():
            net.train()[:-1](2 * blobs - 1)
        torch.save(net.state_dict(), path)


def draw(folder: Path, *, count: int, side: int, grain: int, seed: int) -> Path:
    """A new folder of smooth random pictures; a finer grain makes another kind of them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for number in range(count):
        coarse = torch.rand(1, 3, grain, grain, generator=generator)
        image = (255 * interpolate(coarse, (side, side), mode="bicubic")[0]).clamp(0, 255).byte()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:06d}.png")
    return folder


def read(folder: Path, *, count: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """The folder's pictures in batches, uint8 b 3 h w, and their numbers."""
    files = sorted(folder.iterdir())[:count]
    for start in range(0, len(files), BATCH):
        arrays = [np.array(Image.open(file)) for file in files[start : start + BATCH]]
        yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2), torch.arange(start, start + len(arrays))
