"""How training would scale from 8 to 256 GPUs: a model with its terms written out, not a measurement.

    python -m benchmarks.scaling_model [--mfu 0.35] [--floor 0.9]

`python -m benchmarks.scaling_page` writes it to docs/scaling.md.

A step of one GPU takes `samples x operations / (peak x mfu)` to compute, and `traffic / hbm` to update
weights, moments and average. Between N ranks go, for P parameters (Rajbhandari et al. 2020, sec. 7):

    ddp     2 (N-1)/N x 4 P bytes a step: the all-reduce of float32 gradients, while the backward pass runs
    fsdp    3 (N-1)/N x 4 P bytes a micro-batch: two gathers of the weights and a reduce-scatter of gradients

Bytes go at `REACHED` of the slowest link's speed: NVLink within 8 GPUs, beyond them all cards of a node
together, over which rings are spread; a ring costs a latency for each rank on it. `OVERLAP` of the time of
computing hides them; the rest is waited for, and so is the slowest rank, whose steps spread by `JITTER`.
Operations and parameters are counted on the meta device from the networks' own yaml. The text encoder,
loading, saving, and what small batches cost a GPU are not in the model. Speeds are the vendors' for nodes of
eight H100 SXM, with three networks: a card of 400 Gbit/s for each GPU, or for all eight one of 400 or of 100.
An efficiency above 1 comes from fsdp: each rank updates its share of the weights alone.
"""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.configs import training_config
from ldm.config import plain
from ldm.construct import construct

PEAK = 989e12  # bfloat16 operations a second, H100 SXM data sheet, dense
HBM = 3.35e12  # bytes a second, same
NVLINK = 450e9  # bytes a second and direction, NVLink 4
NETWORKS = {  # bytes a second that leave a node
    "8 cards of 400 Gbit/s a node": 8 * 50e9,
    "1 card of 400 Gbit/s a node": 50e9,
    "1 card of 100 Gbit/s a node": 12.5e9,
}
REACHED = 0.8  # share of a link's speed that messages reach
LATENCY = 10e-6  # seconds a hop of a ring
NODE = 8  # GPUs that NVLink joins
OVERLAP = {"ddp": 2 / 3, "fsdp": 0.9}  # ddp: during the backward pass, 2 of 3 parts of the operations
JITTER = 0.01  # standard deviation of the ranks' steps, relative
STATE = 4 * 5  # bytes a parameter: weight, gradient, two moments, average, all in float32
TRAFFIC = 4 * 9  # bytes a parameter that an update reads and writes
MFU, FLOOR = 0.35, 0.9  # share of the peak, and the efficiency below which scaling has stopped
RANKS = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is trained, and how.

    Attributes:
        parameters: of the network.
        operations: of a sample, forward and backward.
        samples: of a rank and micro-batch.
        accumulated: micro-batches a step.
        total: samples a step of all ranks, where that is held fixed; each rank then takes its share of them.
        strategy: "ddp" or "fsdp".
        gradient_bytes, weight_bytes: of a number on its way.
        group: ranks that a weight is dealt out over; all if 0. Gradients go between groups as with ddp.
    """

    name: str
    parameters: float
    operations: float
    samples: int
    accumulated: int = 1
    total: int = 0
    strategy: str = "ddp"
    gradient_bytes: int = 4
    weight_bytes: int = 4
    group: int = 0


def ring(size: float, ranks: int, *, passes: int, link: float) -> float:
    """Seconds in which a ring passes bytes around: once to gather or to scatter a sum, twice for both."""
    return passes * (ranks - 1) * (size / ranks / (REACHED * link) + LATENCY)


def exchange(training: Training, ranks: int, *, network: float) -> float:
    """Seconds a step in which links are busy; `network` is what leaves a node in a second."""
    gradients, weights = (
        training.parameters * each for each in (training.gradient_bytes, training.weight_bytes)
    )
    if training.strategy == "ddp":
        return ring(gradients, ranks, passes=2, link=NVLINK if ranks <= NODE else min(NVLINK, network))
    group = training.group or ranks
    link = NVLINK if group <= NODE else min(NVLINK, network)
    within = ring(weights, group, passes=2, link=link) + ring(gradients, group, passes=1, link=link)
    between = ring(gradients / group, ranks // group, passes=2, link=network / NODE)
    return training.accumulated * within + between


def rows(training: Training, ranks: int) -> tuple[int, int]:
    """Samples of a micro-batch and micro-batches of a rank; a fixed total is taken in the fewest of them."""
    if not training.total:
        return training.samples, training.accumulated
    share = max(1, training.total // ranks)
    return min(share, training.samples), max(1, share // training.samples)


def step(training: Training, ranks: int, *, mfu: float, network: float) -> float:
    """Seconds of a step."""
    samples, accumulated = rows(training, ranks)
    training = replace(training, accumulated=accumulated)
    compute = accumulated * samples * training.operations / (PEAK * mfu)
    shares = min(training.group or ranks, ranks) if training.strategy == "fsdp" else 1
    update = TRAFFIC * training.parameters / shares / HBM
    if ranks == 1:
        return compute + update
    # gradients travel once a step, after the last micro-batch; weights for each of them
    hidden = compute / (accumulated if training.strategy == "ddp" else 1) * OVERLAP[training.strategy]
    waited = max(0.0, exchange(training, ranks, network=network) - hidden)
    slowest = JITTER * math.sqrt(2 * math.log(ranks)) * compute
    return compute + update + waited + slowest


def efficiency(training: Training, ranks: int, *, mfu: float, network: float) -> float:
    """Samples a second and rank, against one rank that holds everything and waits for nobody."""

    def speed(count: int) -> float:
        samples, accumulated = rows(training, count)
        return samples * accumulated / step(training, count, mfu=mfu, network=network)

    return speed(ranks) / speed(1)


def efficiencies(training: Training, *, mfu: float, network: float) -> dict[int, float]:
    """Efficiency by the number of ranks."""
    return {ranks: efficiency(training, ranks, mfu=mfu, network=network) for ranks in RANKS}


def stops_at(found: Mapping[int, float], *, floor: float) -> str:
    """The first number of ranks at which an efficiency is below a floor; "-" where it never is."""
    return next((f"{ranks}" for ranks, value in found.items() if value < floor), "-")


def memory(training: Training, ranks: int) -> float:
    """Bytes of weights, gradients, moments and average on a rank."""
    return STATE * training.parameters / ((training.group or ranks) if training.strategy == "fsdp" else 1)


def counted(spec: Mapping[str, Any], *, side: int, tokens: int) -> tuple[float, float]:
    """Parameters of a backbone, and operations of a sample, forward and backward."""
    with torch.device("meta"):
        net = construct(spec)
        x = torch.randn(1, net.latent_channels, side, side)
        inputs = x, torch.rand(1), torch.randn(1, tokens, net.context_dim)
        with FlopCounterMode(display=False) as counter:
            net(*inputs).sum().backward()
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops()


def trainings() -> Iterator[Training]:
    """`flickr_base` and a network of a thousand million parameters, as they are and with what would help."""
    config = plain(training_config(["+experiment=flickr_base"]))
    parameters, operations = counted(config["backbone"], side=32, tokens=77)
    each, times = config["batch_size"], config["trainer"]["accumulate_grad_batches"]
    base = Training(name="flickr_base", parameters=parameters, operations=operations, samples=64)
    own = replace(base, samples=each, accumulated=times)
    yield replace(own, name=f"flickr_base, {times} x {each} samples a rank, ddp")
    yield replace(base, name="flickr_base, 64 samples a rank, ddp")
    yield replace(base, name="  gradients in bfloat16", gradient_bytes=2)
    yield replace(base, name="  4 micro-batches a step", accumulated=4)
    yield replace(base, name=f"flickr_base, {times * each} samples a step in all, ddp", total=times * each)
    yield replace(base, name="  2,048 samples a step", total=2048)
    sd15 = plain(training_config(["backbone=unet_sd15", "backbone.channels=352"]))["backbone"]
    parameters, operations = counted(sd15, side=64, tokens=77)
    large = Training(name="1 B", parameters=parameters, operations=operations, samples=8)
    yield replace(large, name=f"{parameters / 1e9:.2f} B parameters, 8 samples a rank, ddp")
    yield replace(large, name="  fsdp", strategy="fsdp")
    yield replace(large, name="  fsdp, weights in bfloat16", strategy="fsdp", weight_bytes=2)
    yield replace(large, name="  fsdp within a node, ddp between", strategy="fsdp", group=NODE)
    yield replace(large, name="  ddp, 4 micro-batches a step", accumulated=4)
    yield replace(large, name="  fsdp, 32 samples a rank", strategy="fsdp", samples=32)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mfu", type=float, default=MFU, help="share of the peak that computing reaches")
    parser.add_argument("--floor", type=float, default=FLOOR, help="efficiency below which it stops scaling")
    options = parser.parse_args()
    print(f"efficiency by a model, not measured: H100, {options.mfu:.0%} of the peak while computing")
    everything = list(trainings())
    for name, network in NETWORKS.items():
        print(f"\n{name:<50}{''.join(f'{ranks:>7}' for ranks in RANKS)}   state   stops at")
        for training in everything:
            print_row(training, mfu=options.mfu, network=network, floor=options.floor)
    print(f"\nstate: on each of {RANKS[0]} GPUs, without activations; stops at: below {options.floor:g}")


def print_row(training: Training, *, mfu: float, network: float, floor: float) -> None:
    """A training's efficiency at each number of ranks, and where it falls below the floor."""
    found = efficiencies(training, mfu=mfu, network=network)
    cells = "".join(f"{value:>7.2f}" for value in found.values())
    state = memory(training, RANKS[0]) / 1e9
    print(f"{training.name:<50}{cells}{state:>6.1f} GB{stops_at(found, floor=floor):>8}")


if __name__ == "__main__":
    main()
