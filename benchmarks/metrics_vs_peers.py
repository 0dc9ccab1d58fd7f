"""Our measures against the usual calculators: the same pictures, the same weights, and who is done first.

    python -m benchmarks.metrics_vs_peers [--pictures 2000] [--side 64] [--weights inception.pth]
        [--peers torch_fidelity torch_fidelity_prc pytorch_fid clean_fid clean_kid torchmetrics]

Draws two folders of pictures, measures them in one pass with five metrics, and prints the peak memory as they
grow. Then runs each peer on the same folders, one after the other, and prints its numbers beside ours in its
own preparation of pictures, and the ratio of the times. Without --weights the InceptionV3 is random, in the
format of the published one: numbers agree or differ all the same. Peers that aren't installed are left out.
Take times on an idle machine.
"""

import argparse
import os
import resource
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.inception import SIZE, Inception2015, inception_2015
from ldm.metrics.inception_score import InceptionScore
from ldm.metrics.kernel_distance import SEED, KernelDistance
from ldm.metrics.picture_metric import Observed, PictureMetric
from ldm.metrics.precision_recall import DensityCoverage, PrecisionRecall
from ldm.metrics.weights import digest, load_strictly, read_state

BATCH = 32
LIMIT = 1e-3  # relative difference at which two calculators still count as equal
NETWORK = "inception-v3-compat"  # torch-fidelity's name of the network of 2015

Numbers = dict[str, float]


class Task(NamedTuple):
    """Two folders, the weights, and how many pictures a subset of KID takes."""

    made: Path
    real: Path
    weights: Path
    subset: int


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
        blobs = interpolate(torch.rand(8, 3, 6, 6), (SIZE, SIZE), mode="bicubic")
        with torch.no_grad():
            net.train()[:-1](2 * blobs - 1)
        torch.save(net.state_dict(), path)


def draw(folder: Path, *, count: int, side: int, grain: int, seed: int) -> Path:
    """A folder of smooth random pictures; a finer grain makes another kind of them."""
    folder.mkdir()
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


def metrics(subset: int) -> list[PictureMetric]:
    """The five of one pass."""
    return [
        FrechetDistance(features="inception", dims=2048),
        InceptionScore(),
        KernelDistance(subset_size=subset),
        PrecisionRecall(features="inception"),
        DensityCoverage(features="inception"),
    ]


def ours(task: Task, *, like: str, count: int | None = None) -> Numbers:
    """All five from one look at each picture."""
    extractor = Inception2015(like=like, weights=str(task.weights), sha256=digest(task.weights))
    measures = metrics(min(task.subset, count or task.subset))
    for folder, real in ((task.real, True), (task.made, False)):
        for images, numbers in read(folder, count=count):
            batch = Observed(extractor(images), rows=numbers, captions=numbers)
            for measure in measures:
                measure.update(batch, real=real)
    return {name: float(value) for each in measures for name, value in each.compute().items()}


def torch_fidelity(task: Task) -> Numbers:
    """fidelity --isc --fid --kid."""
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(**_fidelity(task), isc=True, fid=True, kid=True, kid_subset_size=task.subset)
    names = {"fid": "frechet_inception_distance", "kid": "kernel_inception_distance_mean"}
    names |= {"is_mean": "inception_score_mean", "is_sd": "inception_score_std"}
    return {ours: found[theirs] for ours, theirs in names.items()}


def torch_fidelity_prc(task: Task) -> Numbers:
    """fidelity --prc, with Inception's features."""
    from torch_fidelity import calculate_metrics

    found = calculate_metrics(**_fidelity(task), prc=True)
    return {f"{name}_inception": found[name] for name in ("precision", "recall")}


def pytorch_fid(task: Task) -> Numbers:
    """python -m pytorch_fid."""
    from pytorch_fid.fid_score import calculate_fid_given_paths

    paths = [str(task.made), str(task.real)]
    return {"fid": float(calculate_fid_given_paths(paths, BATCH, "cpu", 2048, num_workers=0))}


def clean_fid(task: Task) -> Numbers:
    """fid.compute_fid(mode="clean")."""
    from cleanfid import fid

    options = {"mode": "clean", "num_workers": 0, "batch_size": BATCH, "device": "cpu", "verbose": False}
    value = fid.compute_fid(str(task.made), str(task.real), custom_feat_extractor=_bare(task), **options)
    return {"fid": float(value)}


def clean_kid(task: Task) -> Numbers:
    """What fid.compute_kid(mode="clean") does; numpy's generator is seeded, so that its subsets are ours."""
    from cleanfid import fid

    options = {"num_workers": 0, "batch_size": BATCH, "device": "cpu", "verbose": False}
    net = _bare(task)
    real, made = (fid.get_folder_features(str(each), net, **options) for each in (task.real, task.made))
    np.random.seed(SEED)  # noqa: NPY002
    return {"kid": fid.kernel_distance(real, made, max_subset_size=task.subset)}


def torchmetrics(task: Task) -> Numbers:
    """FrechetInceptionDistance as it is by default: with antialiasing."""
    from torchmetrics.image import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=str(task.weights))
    for folder, real in ((task.real, True), (task.made, False)):
        for images, _ in read(folder):
            metric.update(images, real=real)
    return {"fid": float(metric.compute())}


class Peer(NamedTuple):
    """A command of another calculator, and which of our preparations of pictures is its own."""

    package: str
    like: str
    run: Callable[[Task], Numbers]


PEERS = {
    "torch_fidelity": Peer("torch_fidelity", "torch_fidelity", torch_fidelity),
    "torch_fidelity_prc": Peer("torch_fidelity", "torch_fidelity", torch_fidelity_prc),
    "pytorch_fid": Peer("pytorch_fid", "pytorch_fid", pytorch_fid),
    "clean_fid": Peer("cleanfid", "clean_fid", clean_fid),
    "clean_kid": Peer("cleanfid", "clean_fid", clean_kid),
    "torchmetrics": Peer("torchmetrics", "torchmetrics", torchmetrics),
}


def _fidelity(task: Task) -> dict[str, object]:
    return {
        "input1": str(task.made),
        "input2": str(task.real),
        "feature_extractor": NETWORK,
        "feature_extractor_weights_path": str(task.weights),
        "batch_size": BATCH,
        "cuda": False,
        "cache": False,
        "verbose": False,
    }


def _bare(task: Task) -> Callable[[Tensor], Tensor]:
    """The network for pictures that clean-fid has resized; it has its own file of the same weights."""
    net = inception_2015()
    load_strictly(net, read_state(task.weights), source=task.weights)
    trunk = net.eval()[:-1]
    return lambda images: trunk((images - 128) / 128).flatten(1)


def grow(task: Task, count: int) -> tuple[Numbers, float]:
    """Our numbers and seconds for all pictures; prints the peak memory, for fewer of them first."""
    for part in (count // 4, count // 2, count):
        started = perf_counter()
        numbers = ours(task, like="torch_fidelity", count=part)
        seconds = perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"ours, 2 x {part} pictures: {seconds:.1f} s, peak memory {peak:,.0f} MiB", flush=True)
    return numbers, seconds


def compare(task: Task, names: list[str], *, count: int) -> None:
    """Prints the table: each peer's numbers beside ours, and the times."""
    numbers, seconds = grow(task, count)
    found, total = {"torch_fidelity": numbers}, 0.0
    print(f"{'peer':20} {'number':20} {'peer':>12} {'ours':>12} {'difference':>11}")
    for name in names:
        peer = PEERS[name]
        if find_spec(peer.package) is None:
            print(f"{name:20} is not installed: pip install -e '.[bench]'")
            continue
        started = perf_counter()
        theirs = peer.run(task)
        spent = perf_counter() - started
        total += spent
        if peer.like not in found:
            found[peer.like] = ours(task, like=peer.like)
        for key, value in theirs.items():
            own = found[peer.like][key]
            difference = abs(own - value) / max(abs(value), 1e-12)
            verdict = "equal" if difference < LIMIT else "DIFFERENT"
            print(f"{name:20} {key:20} {value:12.6g} {own:12.6g} {difference:11.1e} {verdict}", flush=True)
        print(f"{name:20} {spent:.1f} s, {spent / seconds:.2f} of ours")
    for like, each in found.items():
        print(f"our FID and KID, pictures as in {like}: {each['fid']:.6g}, {each['kid']:.6g}")
    print(
        f"peers one after the other {total:.1f} s, our one pass {seconds:.1f} s: ratio {total / seconds:.2f}"
    )


def main() -> None:
    """Reads the options, draws the folders, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="in each of the two folders")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--weights", type=Path, help="InceptionV3 of 2015 in torch-fidelity's format")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = folder / "torch" / "hub" / "checkpoints"  # where pytorch-fid looks before it downloads
        cache.mkdir(parents=True)
        os.environ["TORCH_HOME"] = str(folder / "torch")
        weights = cache / "pt_inception-2015-12-05-6726825d.pth"
        if options.weights:
            shutil.copy(options.weights, weights)
        else:
            write_inception(weights)
        count, side = options.pictures, options.side
        task = Task(
            made=draw(folder / "made", count=count, side=side, grain=7, seed=1),
            real=draw(folder / "real", count=count, side=side, grain=5, seed=0),
            weights=weights,
            subset=max(2, min(1000, count // 2)),
        )
        compare(task, options.peers, count=count)


if __name__ == "__main__":
    main()
