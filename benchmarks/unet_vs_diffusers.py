"""Our U-Net against diffusers' UNet2DConditionModel: same weights, same process, in turns.

    python -m benchmarks.unet_vs_diffusers [--batch 64] [--rounds 10] [--compile]

Prints, for the training step and the sampling loop, both medians and their ratio (below 1: ours is faster),
the largest difference of the float32 outputs, and what share of this machine's convolution rate the step of
our tiny preset reaches. Take the numbers on an idle machine.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.flop_counter import FlopCounterMode

from ldm.construct import construct
from ldm.exchange.diffusers import unet_rules
from ldm.exchange.keymap import shapes, translate
from ldm.models.attention import TransformerSpec
from ldm.models.unet import UNet

TINY = Path(__file__).parents[1] / "conf" / "backbone" / "unet_tiny.yaml"
CHANNELS, SIDE, TOKENS, WIDTH, HEADS, GROUPS, CONTEXT = 32, 8, 32, 128, 4, 8, 128
SAMPLING_STEPS = 20

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
Action = Callable[[], object]


class Inputs(NamedTuple):
    """One batch: latents, network times, contexts."""

    x: Tensor
    t: Tensor
    context: Tensor


def pair() -> tuple[UNet, UNet2DConditionModel]:
    """Both networks with the same weights: the shape of our tiny preset, as far as theirs can follow it."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(WIDTH, WIDTH),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=GROUPS,
        cross_attention_dim=CONTEXT,
        attention_head_dim=HEADS,  # their name for the number of heads
    )
    ours = UNet(
        latent_channels=CHANNELS,
        channels=WIDTH,
        multipliers=[1, 1],
        blocks_per_level=1,
        transformer=TransformerSpec(context_dim=CONTEXT, levels=[True, True], num_heads=HEADS),
        norm_groups=GROUPS,
    )
    ours.load_state_dict(translate(theirs.state_dict(), unet_rules(), expected=shapes(ours.state_dict())))
    return ours, theirs


def inputs(batch: int, *, channels: int = CHANNELS, side: int = SIDE) -> Inputs:
    """Random inputs, the same for every call."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, side, side, generator=generator)
    times = 1000 * torch.rand(batch, generator=generator)
    return Inputs(x=x, t=times, context=torch.randn(batch, TOKENS, CONTEXT, generator=generator))


def training_step(
    net: nn.Module, call: Network, batch: Inputs, *, bfloat16: bool, fused: bool = True
) -> Action:
    """Forward, backward and AdamW on a fixed target."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=fused)
    target = inputs(len(batch.x), channels=batch.x.shape[1], side=batch.x.shape[2]).x.flip(0)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            prediction = call(*batch)
        mse_loss(prediction.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@torch.inference_mode()
def sample(call: Network, batch: Inputs, *, bfloat16: bool, prepare: Callable[[Tensor], Tensor]) -> Tensor:
    """Euler steps on one batch of prompts; ``prepare`` is what a network does once per prompt."""
    x = batch.x
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        context = prepare(batch.context)
        for t in torch.linspace(999, 0, SAMPLING_STEPS):
            x = x - call(x, t.expand(len(x)), context) / SAMPLING_STEPS
    return x


def alternate(ours: Action, theirs: Action, *, rounds: int) -> tuple[float, float]:
    """Median seconds of each, taken in turns after one call to warm up."""
    seconds: dict[Action, list[float]] = {ours: [], theirs: []}
    for action in seconds:
        action()
    for _ in range(rounds):
        for action, times in seconds.items():
            start = perf_counter()
            action()
            times.append(perf_counter() - start)
    return median(seconds[ours]), median(seconds[theirs])


def gflop(action: Action) -> float:
    """Billions of multiplications and additions of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops() / 1e9


@torch.inference_mode()
def convolution_peak(*, rounds: int = 10) -> float:
    """Best GFLOP/s of a 3x3 convolution of 64x128x16x16 in bfloat16, channels-last."""
    layout = torch.channels_last
    conv = nn.Conv2d(128, 128, 3, padding=1).to(torch.bfloat16, memory_format=layout)
    x = torch.randn(64, 128, 16, 16, dtype=torch.bfloat16).contiguous(memory_format=layout)
    work, seconds = gflop(partial(conv, x)), []
    for _ in range(rounds):
        start = perf_counter()
        conv(x)
        seconds.append(perf_counter() - start)
    return work / min(seconds)


def compare(*, batch: int, rounds: int, compile_ours: bool) -> None:
    """Prints the rows of ours against theirs."""
    ours, theirs = pair()
    data = inputs(batch)
    call_ours: Network = torch.compile(ours) if compile_ours else ours

    def call_theirs(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return theirs(x, t, context, return_dict=False)[0]

    with torch.inference_mode():
        difference = (call_ours(*data) - call_theirs(*data)).abs().max().item()
    print(f"largest difference of the outputs, float32: {difference:.1e} (limit 1e-4)")
    for name, bfloat16 in (("float32", False), ("bfloat16", True)):
        loops = (
            partial(sample, call_ours, data, bfloat16=bfloat16, prepare=ours.project_context),
            partial(sample, call_theirs, data, bfloat16=bfloat16, prepare=lambda context: context),
        )
        row(
            f"sampling loop of {SAMPLING_STEPS} steps, {name}", *alternate(*loops, rounds=max(2, rounds // 4))
        )
        steps = [
            training_step(net, call, data, bfloat16=bfloat16)
            for net, call in ((ours, call_ours), (theirs, call_theirs))
        ]
        row(f"training step, {name}", *alternate(*steps, rounds=rounds))


def row(name: str, ours: float, theirs: float) -> None:
    """One line of the table."""
    print(f"{name}: ours {ours:.3f} s, diffusers {theirs:.3f} s, ratio {ours / theirs:.2f}")


def preset(*, batch: int, rounds: int, compile_ours: bool) -> None:
    """Prints how much of this machine the tiny preset's own training step uses."""
    net = construct(OmegaConf.to_container(OmegaConf.load(TINY)))
    data = inputs(batch, channels=net.latent_channels, side=SIDE * net.patch)
    step = training_step(net, torch.compile(net) if compile_ours else net, data, bfloat16=True)
    work = gflop(training_step(net, net, data, bfloat16=True))
    seconds, _ = alternate(step, lambda: None, rounds=rounds)
    peak = convolution_peak()
    size = sum(parameter.numel() for parameter in net.parameters())
    print(f"unet_tiny, {size:,} parameters, {work / batch:.2f} GFLOP and 1/{batch / seconds:.0f} s a picture")
    print(f"{work / seconds:.0f} of {peak:.0f} GFLOP/s, {work / seconds / peak:.0%} of the convolution rate")


def main() -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compile", action="store_true", help="compile our network (wants a C++ compiler)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}")
    compare(batch=options.batch, rounds=options.rounds, compile_ours=options.compile)
    preset(batch=options.batch, rounds=options.rounds, compile_ours=options.compile)


if __name__ == "__main__":
    main()
