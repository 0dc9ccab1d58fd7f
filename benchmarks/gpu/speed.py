"""Training steps and sampling loops against diffusers, in bfloat16 and channels-last, compiled and not."""

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch
from torch import nn

from benchmarks.flops import gflop
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import Row
from benchmarks.problem_sizes import ProblemSize
from benchmarks.scaling_model import PEAK
from benchmarks.unet_vs_diffusers import Inputs, inputs, pair, sample, training_step

BACKEND = {"cuda": "inductor", "cpu": "eager"}  # a rehearsal shows that the graphs are made, in seconds


def speed(machine: Machine, *, compiled: bool) -> Iterator[Row]:
    """Rows of both sizes: samples per second, the ratio to diffusers, and the share of the peak."""
    for name, size in machine.sizes("base", "sd").items():
        machine.forget()
        yield from of_size(machine, name, size, compiled=compiled)


def of_size(machine: Machine, name: str, size: ProblemSize, *, compiled: bool) -> Iterator[Row]:
    """Rows of one size."""
    with machine.device:  # random weights are made where they stay
        ours, theirs = (net.to(memory_format=torch.channels_last) for net in pair(size))
    data = Inputs(*(each.to(machine.device) for each in inputs(size)))
    calls: dict[str, Callable] = {"ldm": ours, "diffusers": lambda *each: theirs(*each, return_dict=False)[0]}
    if compiled:
        torch._dynamo.reset()
        calls = {
            way: torch.compile(call, backend=BACKEND[machine.device.type]) for way, call in calls.items()
        }
    nets: dict[str, nn.Module] = {"ldm": ours, "diffusers": theirs}
    steps = {way: training_step(nets[way], calls[way], data, bfloat16=True) for way in calls}
    work = gflop(training_step(ours, ours, data, bfloat16=True))
    kind = f"{name}, compiled" if compiled else name
    seconds = {way: median(own) for way, own in machine.times(steps).items()}
    yield from compared(f"{kind}: training, batch {size.batch}", seconds, size.batch, "samples/s")
    share = work * 1e9 / seconds["ldm"] / PEAK
    if machine.on_gpu:
        yield Row(what=f"{kind}: training step, share of the data sheet's peak", value=100 * share, unit="%")
    prepare = {"ldm": ours.project_context, "diffusers": lambda context: context}
    loops = {
        way: partial(sample, calls[way], data, steps=size.steps, bfloat16=True, prepare=prepare[way])
        for way in calls
    }
    seconds = {way: median(own) for way, own in machine.times(loops, rounds=3, warm=1).items()}
    yield from compared(f"{kind}: sampling, {size.steps} steps", seconds, size.batch, "samples/s")


def compared(what: str, seconds: dict[str, float], count: int, unit: str) -> Iterator[Row]:
    """Our rate, and the ratio of the times."""
    yield Row(what=f"{what}: rate", value=count / seconds["ldm"], unit=unit)
    ratio = seconds["ldm"] / seconds["diffusers"]
    against = f"1: diffusers, {count / seconds['diffusers']:.4g} {unit}"
    yield Row(what=f"{what}: time relative to diffusers", value=ratio, against=against)
