"""Our measures against the usual calculators: the same pictures, the same weights, and who is done first.

    python -m benchmarks.metrics_vs_peers [--pictures 2000] [--side 64] [--weights inception.pth]
        [--peers torch_fidelity torch_fidelity_prc pytorch_fid clean_fid clean_kid torchmetrics]
        [--folder runs/benchmarks/metrics]

First a trial on 50 pictures: every peer's numbers beside ours in its own preparation of pictures, and how
long all will take. Then two folders of pictures are measured in one pass with five metrics, a quarter of them
and all; then each peer measures all, one after the other; last the ratio of the times. These run in a process
each, whose start isn't counted and whose peak memory is its own. Every step is kept in the folder, so that
the same command resumes where it was stopped. Without --weights the InceptionV3 is random, in the format of
the published one: numbers agree or differ all the same. Peers that aren't installed are left out. Take times
on an idle machine.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.drawn_pictures import BATCH, draw, read, write_inception
from benchmarks.metric_peers import PEERS, Numbers, Task, bare_network
from benchmarks.processes import peak_memory
from ldm.evaluation.feature_pass import parts_of
from ldm.io.reading import hash_file
from ldm.metrics.distances import KernelDistance
from ldm.metrics.diversity import InceptionScore
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.mmap_tables import store_tables
from ldm.metrics.neighbours import DensityCoverage, PrecisionRecall
from ldm.metrics.networks import Inception2015
from ldm.metrics.picture_metric import Observed, PictureMetric, score

LIMIT = 1e-3  # relative difference at which two calculators still count as equal
TRIAL = 50  # pictures
OURS = "torch_fidelity"  # the preparation that our one pass is timed with


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one calculator came to.

    Attributes:
        seconds: with the loading of the network and all arithmetic.
        peak: largest memory of the process so far, in MiB.
    """

    numbers: Numbers
    seconds: float
    peak: float


def timed(action: Callable[[], Any]) -> Step:
    """The step that an action is."""
    started = time.perf_counter()
    numbers = action()
    return Step(numbers=numbers, seconds=time.perf_counter() - started, peak=peak_memory() / 2**20)


def apart(action: Callable[[], Numbers]) -> Step:
    """The step, in a new process."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(timed, action).result()


@dataclass(frozen=True)
class Record:
    """A folder with one json a step, so that what was measured once isn't measured again."""

    folder: Path

    def take(self, name: str, step: Callable[[], Step]) -> Step:
        """The step from its file, or taken now and kept."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            part = path.with_suffix(".part")
            part.write_text(json.dumps(asdict(step())))
            part.replace(path)
        return Step(**json.loads(path.read_text()))

    def holds(self, name: str) -> bool:
        """Whether a step was taken already."""
        return (self.folder / f"{name}.json").is_file()


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
    extractor = Inception2015(like=like, weights=str(task.weights), sha256=hash_file(task.weights))
    measures = {type(each).__name__: each for each in metrics(min(task.subset, count or task.subset))}
    real, made = (looked_at(folder, extractor, count) for folder in (task.real, task.made))
    scores = score(measures, real=parts_of(real), generated=parts_of(made))
    return {name: value for numbers in scores.values() for name, value in numbers.items()}


def looked_at(folder: Path, extractor: FeatureExtractor, count: int | None) -> Observed:
    """Features of a folder's pictures, in files as in an evaluation."""
    features = store_tables(extractor(images) for images, _ in read(folder, count=count))
    numbers = torch.arange(len(features["inception"]))
    return Observed(features, rows=numbers, captions=numbers)


def prepared(folder: Path, *, count: int, side: int, weights: Path) -> Task:
    """Two folders of so many pictures, drawn unless they are there whole."""
    for name, grain, seed in (("real", 5, 0), ("made", 7, 1)):
        if not (folder / name).is_dir():
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            draw(part, count=count, side=side, grain=grain, seed=seed).rename(folder / name)
    return Task(
        made=folder / "made", real=folder / "real", weights=weights, subset=max(2, min(1000, count // 2))
    )


def trial(task: Task, names: list[str], record: Record) -> dict[str, float]:
    """Prints each peer's numbers beside ours; returns the seconds of ours and of each peer."""
    found = {OURS: record.take("trial_ours", lambda: timed(partial(ours, task, like=OURS)))}
    seconds = {"ours": found[OURS].seconds}
    print(f"\ntrial, 2 x {TRIAL} pictures")
    print(f"{'peer':20} {'number':20} {'peer':>12} {'ours':>12} {'difference':>11}", flush=True)
    for name in names:
        run, like = partial(PEERS[name].run, task), PEERS[name].like
        theirs = record.take(f"trial_{name}", partial(timed, run))
        seconds[name] = theirs.seconds
        if like not in found:
            mine = partial(ours, task, like=like)
            found[like] = record.take(f"trial_ours_as_{like}", partial(timed, mine))
        compare(name, theirs.numbers, found[like].numbers)
    for like, each in found.items():
        print(f"our FID and KID as {like}: {each.numbers['fid']:.6g}, {each.numbers['kid']:.6g}")
    return seconds


def compare(name: str, theirs: Numbers, own: Numbers) -> None:
    """Prints a peer's numbers beside ours, a line each."""
    for key, value in theirs.items():
        difference = abs(own[key] - value) / max(abs(value), 1e-12)
        verdict = "equal" if difference < LIMIT else "DIFFERENT"
        print(f"{name:20} {key:20} {value:12.6g} {own[key]:12.6g} {difference:11.1e} {verdict}", flush=True)


def paces(task: Task) -> Numbers:
    """Seconds a picture of our network and of the bare one, as peers run it."""
    images = torch.randint(0, 256, (BATCH, 3, Inception2015.size, Inception2015.size), dtype=torch.uint8)
    mine = Inception2015(like=OURS, weights=str(task.weights), sha256=hash_file(task.weights))
    theirs = bare_network(task)
    looks = {"ours": partial(mine, images), "peers": partial(theirs, images.float())}
    with torch.no_grad():
        return {name: timed(look).seconds / BATCH for name, look in looks.items()}


def estimate(pictures: dict[str, int], trial_seconds: dict[str, float], pace: Numbers) -> dict[str, float]:
    """Seconds of each step: what the trial took, and the network's time for the pictures that it has more."""
    about = {}
    for name, count in pictures.items():
        whose = "ours" if name.startswith("ours") else name
        each = pace.get(whose, pace["peers"])
        about[name] = trial_seconds[whose] + 2 * (count - TRIAL) * each
    return about


def race(task: Task, names: list[str], record: Record, *, count: int, about: dict[str, float]) -> None:
    """Our pass over a quarter of the pictures and over all, then each peer; prints times, memory, ratio."""
    part = quarter(count)
    actions = {
        "ours_quarter": partial(ours, task, like=OURS, count=part),
        "ours": partial(ours, task, like=OURS),
        **{name: partial(PEERS[name].run, task) for name in names},
    }
    taken: dict[str, Step] = {}
    for number, (name, action) in enumerate(actions.items(), start=1):
        left = sum(about[each] for each in list(actions)[number - 1 :] if not record.holds(each)) / 60
        print(f"[{number}/{len(actions)}] {name}: some {left:.1f} min left", flush=True)
        taken[name] = record.take(name, partial(apart, action))
        print(f"    {taken[name].seconds:.1f} s, peak memory {taken[name].peak:,.0f} MiB", flush=True)
    mine, more = taken["ours"], taken["ours"].peak - taken["ours_quarter"].peak
    print(f"\nour memory: {more:,.1f} MiB more for {count - part} more pictures on each side")
    for name in names:
        print(f"{name:20} {taken[name].seconds:.1f} s, {taken[name].seconds / mine.seconds:.2f} of ours")
        if PEERS[name].like == OURS:
            compare(name, taken[name].numbers, mine.numbers)
    total = sum(taken[name].seconds for name in names)
    print(
        f"peers one after the other {total:.1f} s, our one pass {mine.seconds:.1f} s: "
        f"ratio {total / mine.seconds:.2f}"
    )


def quarter(count: int) -> int:
    """Pictures of the pass that memory is compared with."""
    return max(TRIAL, count // 4)


def main() -> None:
    """Reads the options, draws the folders, compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=2000, help="in each of the two folders, at least 50")
    parser.add_argument("--side", type=int, default=64, help="pixels")
    parser.add_argument("--weights", type=Path, help="InceptionV3 of 2015 in torch-fidelity's format")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/metrics"), help="of the record")
    options = parser.parse_args()
    if options.pictures < TRIAL:
        parser.error(f"--pictures {options.pictures} must be at least {TRIAL}")
    folder = options.folder / f"{options.pictures}_{options.side}px_{torch.get_num_threads()}_threads"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batches of {BATCH}")
    print(f"record in {folder}")
    weights = place_weights(folder, options.weights)
    absent = [name for name in options.peers if find_spec(PEERS[name].package) is None]
    for name in absent:
        print(f"{name} is not installed: pip install -e '.[bench]'")
    names = [name for name in options.peers if name not in absent]
    record = Record(folder)
    few = prepared(folder / "trial", count=TRIAL, side=options.side, weights=weights)
    seconds = trial(few, names, record)
    pace = record.take("trial_paces", lambda: timed(partial(paces, few))).numbers
    pictures = {"ours_quarter": quarter(options.pictures), "ours": options.pictures}
    about = estimate(pictures | dict.fromkeys(names, options.pictures), seconds, pace)
    print(f"\nall, 2 x {options.pictures} pictures: some {sum(about.values()) / 60:.1f} min", flush=True)
    task = prepared(folder, count=options.pictures, side=options.side, weights=weights)
    race(task, names, record, count=options.pictures, about=about)


def place_weights(folder: Path, given: Path | None) -> Path:
    """The weights, where pytorch-fid looks before it downloads; a record holds to those that it began with.

    Raises:
        SystemExit: the record began with others.
    """
    path = folder / "torch" / "hub" / "checkpoints" / "pt_inception-2015-12-05-6726825d.pth"
    os.environ["TORCH_HOME"] = str(folder / "torch")
    if path.is_file():
        if given is not None and hash_file(given) != hash_file(path):
            raise SystemExit(f"{folder} was measured with other weights than {given}: name another --folder")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if given is None:
        write_inception(path)
    else:
        shutil.copy(given, path)
    return path


if __name__ == "__main__":
    main()
