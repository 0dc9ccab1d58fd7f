"""The usual calculators of FID, KID, IS, precision and recall, each as its own command runs it."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from benchmarks.drawn_pictures import BATCH, read
from ldm.metrics.distances import SUBSETS_SEED
from ldm.metrics.networks import inception_2015
from ldm.metrics.weights import load_strictly, read_state

NETWORK = "inception-v3-compat"  # torch-fidelity's name of the network of 2015

Numbers = dict[str, float]


class Task(NamedTuple):
    """Two folders, the weights, and how many pictures a subset of KID takes."""

    made: Path
    real: Path
    weights: Path
    subset: int


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
    value = fid.compute_fid(
        str(task.made), str(task.real), custom_feat_extractor=bare_network(task), **options
    )
    return {"fid": float(value)}


def clean_kid(task: Task) -> Numbers:
    """What fid.compute_kid(mode="clean") does; numpy's generator is seeded, so that its subsets are ours."""
    from cleanfid import fid

    options = {"num_workers": 0, "batch_size": BATCH, "device": "cpu", "verbose": False}
    net = bare_network(task)
    real, made = (fid.get_folder_features(str(each), net, **options) for each in (task.real, task.made))
    np.random.seed(SUBSETS_SEED)  # noqa: NPY002
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


def bare_network(task: Task) -> Callable[[Tensor], Tensor]:
    """The network for pictures that clean-fid has resized; it has its own file of the same weights."""
    net = inception_2015()
    load_strictly(net, read_state(task.weights), source=task.weights)
    trunk = net.eval()[:-1]
    return lambda images: trunk((images - 128) / 128).flatten(1)
