"""Costs that grow, a figure for each beside the ideal slope: `python -m benchmarks.slopes [--only start]`.

    step_batch, step_side, step_parameters   a training step of the base U-Net
    loader                                   batches of pictures against loader processes
    evaluation                               features of pictures against their number
    resume                                   the order of an epoch against the size of the set
    start                                    opening an index against its shards of 1,024 samples

Prints the measured points and the slope on doubly logarithmic axes; writes `<name>.png` and `slopes.json`.
`start` counts seconds of a processor and prints the memory of its process, too; to write the index of 10,000
shards takes three gigabytes of memory and one of disk.
Take the numbers on an idle machine. `--rehearse` uses the smallest values of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.loader import made, ours, prepare
from benchmarks.problem_sizes import SIZES, TOY, ProblemSize
from benchmarks.timing import in_turns
from ldm.checkpoints.provenance import git_state
from ldm.data.index import TAR_BLOCK, Shard, ShardIndex

PER_SHARD = 1024
Point = tuple[float, float]  # what grows, seconds


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A cost: how it is measured at some values, which, and the ideal exponent."""

    measure: Callable[[Sequence[int]], Iterator[Point]]
    values: Sequence[int]
    ideal: float
    x: str


def seconds_of(action: Callable[[], object], *, rounds: int = 3) -> float:
    """The median of some calls, after one that doesn't count."""
    return median(in_turns({"": action}, rounds=rounds)[""])


def steps(values: Sequence[int], *, size: ProblemSize, grows: str) -> Iterator[Point]:
    """Training steps of our U-Net in bfloat16: forward, backward, AdamW."""
    from benchmarks.unet_vs_diffusers import inputs, training_step
    from ldm.models.attention import TransformerSpec
    from ldm.models.unet import UNet

    for value in values:
        shape = size
        if grows == "batch":
            shape = replace(size, batch=value)
        elif grows == "side":
            shape = replace(size, latents=(size.latents[0], value))
        else:  # the channels of the first level; the others in proportion
            widths = tuple(width * value // size.widths[0] for width in size.widths)
            shape = replace(size, widths=widths)
        net = UNet(**shape.backbone(), transformer=TransformerSpec(**shape.transformer()))
        x = sum(parameter.numel() for parameter in net.parameters()) if grows == "parameters" else value
        yield x, seconds_of(training_step(net, net, inputs(shape), bfloat16=True))


def loaders(values: Sequence[int], *, pictures: int = 256) -> Iterator[Point]:
    """Seconds of a pass over JPEGs by as many loader processes."""
    from ldm.data.datamodule import PictureData
    from ldm.planning.fitting import quiet

    quiet()
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        prepare(islice(made(), pictures), Path(folder))
        ours(Path(folder), size=256, batches=1)()  # files are in memory from here on
        for workers in values:
            data = PictureData(root=folder, size=256, batch_size=16, num_workers=workers, val_split="train")
            data.trainer = endless()
            yield workers, seconds_of(partial(take, iter(data.train_dataloader()), pictures // 16))


def take(stream: Iterator[object], batches: int) -> None:
    """Reads so many batches."""
    for _ in islice(stream, batches):
        pass


def endless() -> object:
    """A Lightning trainer of a million steps; data modules read the length of a training from theirs."""
    from pytorch_lightning import Trainer

    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, max_steps=10**6, **options)


def each_of(function: Callable[[torch.Tensor], object], batches: Sequence[torch.Tensor]) -> None:
    """Calls a function with each batch."""
    for batch in batches:
        function(batch)


@torch.inference_mode()
def evaluations(values: Sequence[int]) -> Iterator[Point]:
    """Features of pictures by EfficientNet-lite0, which is most of an evaluation's measuring."""
    from ldm.metrics.networks import EfficientNetLite0

    network = EfficientNetLite0(size=128, resize="bicubic")
    for count in values:
        batches = [torch.randint(0, 256, (16, 3, 64, 64), dtype=torch.uint8) for _ in range(count // 16)]
        yield count, seconds_of(partial(each_of, network, batches))


def resumes(values: Sequence[int]) -> Iterator[Point]:
    """The order of an epoch, which a resumed training makes anew before its first sample."""
    from ldm.randomness import keyed

    for count in values:
        yield count, seconds_of(partial(keyed.permutation, 0, 7, count))


def starts(values: Sequence[int]) -> Iterator[Point]:
    """Opening the index of so many shards, in a process of its own; its memory is printed."""
    for count in values:
        with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
            write_index(Path(folder), count)
            command = [sys.executable, "-c", OPEN, folder]  # without torch, which this module loads
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"  {count:,} shards: {count * PER_SHARD:,} samples, {found['memory'] / 1e6:.0f} MB", flush=True
        )
        yield count, found["seconds"]


def write_index(folder: Path, count: int) -> None:
    """An index of shards that have the right size and no content."""
    size, shards = 4 * TAR_BLOCK * (PER_SHARD + 1), []
    spans = [(TAR_BLOCK * (1 + 4 * number), 600) for number in range(PER_SHARD)]
    for shard in range(count):
        name = f"train-{shard:06d}.tar"
        with (folder / name).open("wb") as stream:
            stream.truncate(size)
        keys = [f"{shard:06d}{number:06d}" for number in range(PER_SHARD)]
        places = {"images": spans, "records": spans, "checksums": spans}
        shards.append(Shard(file=name, split="train", bytes=size, sha256="0" * 64, keys=keys, **places))
    ShardIndex(root=folder, name="slopes", shards=tuple(shards)).save()


OPEN = """
import json, sys, time
from benchmarks.processes import peak_memory
from ldm.data.index import ShardIndex
from ldm.data.shards import ShardReader
began = time.process_time()
ShardReader(ShardIndex.load(sys.argv[1]), split="train")
print(json.dumps({"seconds": time.process_time() - began, "memory": peak_memory()}))
"""
BASE = SIZES["base"]
SLOPES = {
    "step_batch": Slope(
        measure=partial(steps, size=BASE, grows="batch"), values=(1, 2, 4, 8), ideal=1, x="samples"
    ),
    "step_side": Slope(
        measure=partial(steps, size=BASE, grows="side"), values=(8, 16, 32, 64), ideal=2, x="latents a side"
    ),
    "step_parameters": Slope(
        measure=partial(steps, size=BASE, grows="parameters"),
        values=(64, 128, 192, 256),
        ideal=1,
        x="parameters",
    ),
    "loader": Slope(measure=loaders, values=(1, 2, 4), ideal=-1, x="loader processes"),
    "evaluation": Slope(measure=evaluations, values=(64, 256, 1024), ideal=1, x="pictures"),
    "resume": Slope(measure=resumes, values=(10**4, 10**5, 10**6, 10**7), ideal=1, x="pictures in the set"),
    "start": Slope(measure=starts, values=(10, 1000, 10000), ideal=1, x="shards"),
}
REHEARSED = {
    "step_batch": replace(
        SLOPES["step_batch"], measure=partial(steps, size=TOY, grows="batch"), values=(1, 2)
    ),
    "evaluation": replace(SLOPES["evaluation"], values=(16, 32)),
    "resume": replace(SLOPES["resume"], values=(1000, 2000)),
    "start": replace(SLOPES["start"], values=(1, 2)),
}


def exponent(points: Sequence[Point]) -> float:
    """The slope of a straight line through the points on doubly logarithmic axes."""
    x, y = np.log(np.array(points, dtype=np.float64)).T
    return float(np.polyfit(x, y, 1)[0])


def draw(name: str, slope: Slope, points: Sequence[Point], path: Path) -> None:
    """The points, and the ideal line through the first of them."""
    from matplotlib.figure import Figure

    from ldm.io.pictures import save_figure

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    panel, (x, y) = figure.subplots(), np.array(points).T
    panel.loglog(x, y, "o-", label=f"measured, slope {exponent(points):.2f}")
    panel.loglog(x, y[0] * (x / x[0]) ** slope.ideal, "--", label=f"ideal, {slope.ideal:g}")
    panel.set(title=name, xlabel=slope.x, ylabel="seconds")
    panel.legend()
    save_figure(figure, path, dpi=110)


def main() -> None:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SLOPES, default=list(SLOPES))
    parser.add_argument("--shards", nargs="+", type=int, default=list(SLOPES["start"].values))
    parser.add_argument("--out", type=Path, default=Path("runs/slopes"))
    parser.add_argument("--rehearse", action="store_true", help="the smallest values: shows that it works")
    options = parser.parse_args()
    chosen = SLOPES | {"start": replace(SLOPES["start"], values=options.shards)}
    slopes = REHEARSED if options.rehearse else {name: chosen[name] for name in options.only}
    measured(slopes, options.out)


def measured(slopes: dict[str, Slope], out: Path) -> None:
    """Prints each slope, and writes its figure and the json of all."""
    out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, slope in slopes.items():
        points = list(slope.measure(slope.values))
        found[name] = {"points": points, "slope": exponent(points), "ideal": slope.ideal}
        shown = ", ".join(f"{x:,.0f}: {seconds:.4g} s" for x, seconds in points)
        print(f"{name}, {slope.x}: {shown}; slope {exponent(points):.2f}, ideal {slope.ideal:g}", flush=True)
        draw(name, slope, points, out / f"{name}.png")
    about = {"code": git_state(), "threads": torch.get_num_threads()}
    (out / "slopes.json").write_text(json.dumps(about | {"slopes": found}, indent=1))


if __name__ == "__main__":
    main()
