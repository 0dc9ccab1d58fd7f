"""Our U-Net against diffusers' UNet2DConditionModel: same weights, same process, in turns.

    python -m benchmarks.unet_vs_diffusers [--shape tiny base sd] [--rounds 10] [--compile]

Prints, for the training step and the sampling loop of each shape, both medians and their ratio (below 1: ours
is faster), and the largest difference of the float32 outputs; at the end, what share of this machine's
convolution rate the step of our tiny preset reaches. Take the numbers on an idle machine. Two optimizers of
Stable Diffusion's size don't fit in 24 GB: its step is forward and backward alone.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from benchmarks.flops import Action, convolution_peak, gflop
from benchmarks.problem_sizes import EVERY, SIZES, ProblemSize, add_shape
from benchmarks.timing import in_turns
from ldm.construct import construct
from ldm.exchange.keymap import shapes, translate
from ldm.exchange.names import unet_rules
from ldm.models.attention import TransformerSpec
from ldm.models.unet import UNet

TINY = Path(__file__).parents[1] / "conf" / "backbone" / "unet_tiny.yaml"

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """One batch: latents, network times, contexts."""

    x: Tensor
    t: Tensor
    context: Tensor


def pair(shape: ProblemSize) -> tuple[UNet, UNet2DConditionModel]:
    """Both networks with the same weights."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**shape.unet())
    ours = UNet(**shape.backbone(), transformer=TransformerSpec(**shape.transformer()))
    ours.load_state_dict(translate(theirs.state_dict(), unet_rules(), expected=shapes(ours.state_dict())))
    return ours, theirs


def inputs(shape: ProblemSize) -> Inputs:
    """Random inputs, the same for every call."""
    generator = torch.Generator().manual_seed(1)
    channels, side = shape.latents
    x = torch.randn(shape.batch, channels, side, side, generator=generator)
    times = 1000 * torch.rand(shape.batch, generator=generator)
    return Inputs(x=x, t=times, context=torch.randn(shape.batch, *shape.context, generator=generator))


def training_step(
    net: nn.Module, call: Network, batch: Inputs, *, bfloat16: bool, optimized: bool = True
) -> Action:
    """Forward, backward and AdamW on a fixed target."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    device = batch.x.device
    target = torch.randn(batch.x.shape, generator=torch.Generator().manual_seed(2)).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            prediction = call(*batch)
        mse_loss(prediction.float(), target).backward()
        if optimized:
            optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def sample(
    call: Network, batch: Inputs, *, steps: int, bfloat16: bool, prepare: Callable[[Tensor], Tensor]
) -> Tensor:
    """Euler steps on one batch of prompts; ``prepare`` is what a network does once per prompt."""
    x = batch.x
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bfloat16):
        context = prepare(batch.context)
        for t in torch.linspace(999, 0, steps, device=x.device):
            x = x - call(x, t.expand(len(x)), context) / steps
    return x


def compare(name: str, shape: ProblemSize, *, rounds: int, compile_ours: bool) -> None:
    """Prints the rows of one shape."""
    ours, theirs = pair(shape)
    data = inputs(shape)
    call_ours: Network = torch.compile(ours) if compile_ours else ours

    def call_theirs(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return theirs(x, t, context, return_dict=False)[0]

    with torch.inference_mode():
        difference = (call_ours(*data) - call_theirs(*data)).abs().max().item()
    size = sum(parameter.numel() for parameter in ours.parameters())
    print(f"{name}: {size / 1e6:.1f} M parameters, batch {shape.batch}, latents {shape.latents}; ", end="")
    print(f"largest difference of the outputs in float32 {difference:.1e} (limit 1e-4)")
    for kind, bfloat16 in (("float32", False), ("bfloat16", True)):
        loops = [
            partial(sample, call, data, steps=shape.steps, bfloat16=bfloat16, prepare=prepare)
            for call, prepare in ((call_ours, ours.project_context), (call_theirs, lambda context: context))
        ]
        row(f"  sampling loop of {shape.steps} steps, {kind}", loops, rounds=max(2, rounds // 2))
        steps = [
            training_step(net, call, data, bfloat16=bfloat16, optimized=shape.optimizer)
            for net, call in ((ours, call_ours), (theirs, call_theirs))
        ]
        row(f"  training step, {kind}", steps, rounds=rounds)


def row(name: str, actions: Sequence[Action], *, rounds: int) -> None:
    """Times ours and theirs and prints a line of the table."""
    ours, theirs = (median(own) for own in in_turns(dict(enumerate(actions)), rounds=rounds).values())
    print(f"{name}: ours {ours:.3f} s, diffusers {theirs:.3f} s, ratio {ours / theirs:.2f}", flush=True)


def preset(*, rounds: int, compile_ours: bool) -> None:
    """Prints how much of this machine the tiny preset's own training step uses."""
    net = construct(OmegaConf.to_container(OmegaConf.load(TINY), resolve=True))
    shape = SIZES["tiny"]
    side = shape.latents[1] * net.patch
    data = inputs(replace(shape, latents=(net.latent_channels, side)))
    step = training_step(net, torch.compile(net) if compile_ours else net, data, bfloat16=True)
    work = gflop(training_step(net, net, data, bfloat16=True))
    seconds = median(in_turns({"": step}, rounds=rounds)[""])
    peak, batch = convolution_peak(), shape.batch
    size = sum(parameter.numel() for parameter in net.parameters())
    print(f"unet_tiny, {size:,} parameters, {work / batch:.2f} GFLOP and 1/{batch / seconds:.0f} s a picture")
    print(f"{work / seconds:.0f} of {peak:.0f} GFLOP/s, {work / seconds / peak:.0%} of the convolution rate")


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_shape(parser)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="compile our network (wants a C++ compiler)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    for name in options.shape:
        compare(name, EVERY[name], rounds=options.rounds, compile_ours=options.compile)
    preset(rounds=options.rounds, compile_ours=options.compile)


if __name__ == "__main__":
    main()
