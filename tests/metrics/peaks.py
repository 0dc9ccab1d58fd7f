"""A program: generates pictures, takes features and each metric in a process of its own; prints the peaks.

    python tests/metrics/peaks.py <rows of a block> <features of a picture> <folder> <pictures> ...

Tables are worked on in blocks of fewer rows than usual, so that fewer pictures fill several of them. For each
number of pictures a line `<pictures> <what> <bytes>` for the pass over both sides, for reading real pictures
by number, and for each metric. Linux.
"""

import os
import re
import sys
from pathlib import Path

import torch

from ldm.evaluation.feature_pass import FeaturePass, Observers, parts_of
from ldm.evaluation.protocol import Request
from ldm.evaluation.reference_set import FeatureCache, ReferenceSet
from ldm.metrics import distances
from ldm.metrics.distances import Cmmd, FrechetRatio, KernelDistance, Mind
from ldm.metrics.diversity import CaptionDiversity, InceptionScore, PerceptualDiversity, VendiScore
from ldm.metrics.features import BothWays, FeatureIdentity, Pixels
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.neighbours import (
    ClippedDensityCoverage,
    CopiedShare,
    DensityCoverage,
    Memorisation,
    PrecisionRecall,
)
from ldm.metrics.picture_metric import score
from ldm.metrics.retrieval import ClipScore, PictureRecall, RPrecision

SIDE = 16  # pixels; a picture's own numbers then weigh 3 KB
NET = "net_image"


class Projection:
    """Features that are random sums of a picture's pixels; texts have random ones."""

    def __init__(self, dims):
        self.matrix = torch.randn(3 * SIDE**2, dims, generator=torch.Generator().manual_seed(0))
        self.dims = {NET: dims}
        self.identity = FeatureIdentity(name="net", sha256="0" * 64, size=SIDE, resize="bicubic")

    def __call__(self, images):
        return {NET: (images.flatten(1) / 255) @ self.matrix}

    def read(self, texts):
        return torch.stack([noise(int(text), self.matrix.shape[1]) for text in texts])


class Noise:
    """Random pictures by number."""

    sha256 = "1" * 64

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def image(self, number):
        return picture(number)

    def keys(self):
        return [str(number) for number in range(self.count)]

    def texts(self):
        return [[key] for key in self.keys()]


class Difference:
    """Mean absolute difference of two pictures."""

    name = "difference"

    def __call__(self, ours, theirs):
        return (ours - theirs).abs().mean(dim=(1, 2, 3))


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(seed):
    return (noise(seed, 3, SIDE, SIDE) * 60 + 128).clamp(0, 255).to(torch.uint8)


def draw(requests):
    return torch.stack([picture(request.seed) for request in requests])


def measures(dims):
    return [
        FrechetDistance(features=NET, dims=dims),
        VendiScore(features=NET, dims=dims),
        ClipScore(clip="net"),
        InceptionScore(features=NET),
        KernelDistance(features=NET, subsets=10, subset_size=500),
        PrecisionRecall(features=NET),
        DensityCoverage(features=NET),
        ClippedDensityCoverage(features=NET),
        Mind(features=NET),
        FrechetRatio(features=NET),
        CopiedShare(features="pixels_both_ways"),
        Cmmd(features=NET),
        Memorisation(features=NET),
        PictureRecall(features=NET),
        RPrecision(clip="net"),
        CaptionDiversity(features=NET, dims=dims),
        PerceptualDiversity(distance=Difference()),
    ]


def apart(what, action, *of):
    """Does it in a process of its own, and prints the most memory of that, pages of files aside, if named."""
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0
        return
    held = action(*of)  # keeps its tables mapped until their pages have been counted
    status = Path("/proc/self/status").read_text()
    peak, files = (int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) for name in ("VmHWM", "RssFile"))
    if what:
        print(what, 1024 * (peak - files), flush=True)
    del held
    os._exit(0)


def look(count, dims, folder):
    """All real pictures, and as many drawn ones by their features."""
    net = Projection(dims)
    pixels = {"pixels": Pixels(size=SIDE), "both": BothWays(of=Pixels(size=SIDE // 2))}
    observers = Observers(pictures={"net": net, **pixels}, texts={"net_text": net.read})
    cache = FeatureCache(folder=folder)
    gallery = ReferenceSet({"real": Noise(count)}, observers=observers, cache=cache, progress=False)
    requests = [
        Request(prompt=str(number), seed=count + number, row=number, caption=number, name="")
        for number in range(count)
    ]
    look = FeaturePass(observers=observers, batch_size=50)
    made, _ = look(draw, requests, wanted=observers.names)
    return gallery, made


def pick(gallery):
    """Reads all real pictures by their numbers."""
    for _ in gallery.observed([*reversed(range(gallery.count))]):
        pass


def take(measure, gallery, made):
    """One measure."""
    if isinstance(measure, CaptionDiversity | PerceptualDiversity):
        made = made._replace(captions=made.captions // 2)
    score({"it": measure}, real=gallery.observed(), generated=parts_of(made))


def everything(count, dims, folder):
    """All lines of so many pictures."""
    apart(f"{count} look", look, count, dims, folder)
    gallery, made = look(count, dims, folder)
    apart(f"{count} pick", pick, gallery)
    for measure in measures(dims):
        apart(f"{count} {type(measure).__name__}", take, measure, gallery, made)


def work_on_blocks_of(rows):
    """Sets how many rows of a table are in memory at once, wherever the number is used."""
    for module in [each for name, each in sys.modules.items() if name.startswith("ldm.")]:
        if hasattr(module, "ROWS_AT_ONCE"):
            module.ROWS_AT_ONCE = rows
    distances.AT_ONCE = 1024 * rows


def main():
    rows, dims, folder, *counts = sys.argv[1:]
    work_on_blocks_of(int(rows))
    torch.set_num_threads(1)  # a forked process has no others
    for count in map(int, counts):
        apart("", everything, count, int(dims), Path(folder) / str(count))


if __name__ == "__main__":
    main()
