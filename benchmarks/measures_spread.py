"""How much each measure of pictures varies with the pictures, and what it costs beside the Frechet distance.

    python -m benchmarks.measures_spread [--counts 300 1000 2000] [--resamplings 6] [--pictures 10000]
        [--reference 4000] [--folder runs/benchmarks/measures]

Real pictures of shapes stand for generated ones, as of a perfect generator. Each resampling chooses N
pictures at random outside the reference set and measures them against it. The table has mean and standard
deviation over the resamplings, and the CPU seconds of a measurement without the features, which are computed
once and kept in the folder. Where N is near the number of pictures left, the resamplings share most of them
and deviate too little: raise --pictures.
"""

import argparse
import time
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import Tensor

from data_prep.shapes import Options
from data_prep.shapes import main as prepare
from ldm import UserError
from ldm.data.shards import PictureDataset
from ldm.evaluation.feature_pass import Observers, parts_of
from ldm.evaluation.reference_set import FeatureCache, ReferenceSet
from ldm.evaluation.report import markdown_table
from ldm.metrics.distances import FrechetRatio, Mind
from ldm.metrics.features import BothWays, Pixels
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.neighbours import ClippedDensityCoverage, CopiedShare
from ldm.metrics.networks import EfficientNetLite0
from ldm.metrics.picture_metric import Observed, PictureMetric, score
from ldm.randomness import keyed

NETWORK, PIXELS = "efficientnet_lite0", "pixels_both_ways"
SIDE = 64  # pixels


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[300, 1000, 2000])
    parser.add_argument("--resamplings", type=int, default=6)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--reference", type=int, default=4000)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/measures"))
    options = parser.parse_args()
    pictures = real_pictures(options.folder, count=options.pictures)
    left = pictures.count - options.reference
    if options.resamplings < 2 or max(options.counts) > left:
        raise UserError(f"take at least 2 resamplings, and counts of at most {left}: raise --pictures")
    columns = [measured(pictures, count, options.reference, options.resamplings) for count in options.counts]
    header = ["measure", *(f"N = {count:,}" for count in options.counts)]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    print(markdown_table(header, rows))


def measures() -> list[PictureMetric]:
    """The Frechet distance and the measures beside it."""
    return [
        FrechetDistance(features=NETWORK, dims=EfficientNetLite0.dims[NETWORK]),
        FrechetRatio(features=NETWORK),
        Mind(features=NETWORK),
        ClippedDensityCoverage(features=NETWORK),
        CopiedShare(features=PIXELS),
    ]


def real_pictures(folder: Path, *, count: int) -> ReferenceSet:
    """Pictures of shapes with their features; both are made once."""
    root = folder / f"shapes_{count}"
    prepare(Options(out=str(root), count=count, size=SIDE))
    splits = {"train": PictureDataset(str(root), split="train", size=SIDE)}
    looks = {NETWORK: EfficientNetLite0(size=SIDE), PIXELS: BothWays(of=Pixels(size=SIDE // 2))}
    cache = FeatureCache.at(str(root / "features"), root=str(root))
    return ReferenceSet(splits, observers=Observers(pictures=looks), cache=cache)


def measured(pictures: ReferenceSet, count: int, reference: int, resamplings: int) -> dict[str, str]:
    """For each number of each measure: mean, deviation, and the CPU seconds of its measure."""
    found: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    for number in range(resamplings):
        left = pictures.count - reference
        order = keyed.permutation(number, count, left, stream="measures_spread")
        taken = reference + torch.from_numpy(order[:count])
        for metric in measures():
            sides = [some(pictures, metric, rows) for rows in (torch.arange(reference), taken)]
            began = time.process_time()
            numbers = score({"": metric}, real=sides[0], generated=sides[1])[""]
            spent = time.process_time() - began
            for name, value in numbers.items():
                found.setdefault(name, []).append(value)
                seconds.setdefault(name, []).append(spent)
    return {
        name: f"{mean(values):.4g} ± {stdev(values):.2g} ({mean(seconds[name]):.2g} s)"
        for name, values in found.items()
    }


def some(pictures: ReferenceSet, metric: PictureMetric, rows: Tensor) -> list[Observed]:
    """What a metric needs of the pictures with these numbers, in memory."""
    features = {name: pictures.features[name][rows] for name in metric.needs}
    return [*parts_of(Observed(features=features, rows=rows, captions=rows))]


if __name__ == "__main__":
    main()
