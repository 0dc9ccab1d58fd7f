"""Where the processor's time of a training step goes: in groups, and operator by operator.

    python -m benchmarks.profile_step [--net unet_tiny dit_base ...] [--precision bfloat16 ...] [--rounds 3]

A step is the forward pass, the loss, the backward pass, and what `ldm.train` does after it: norms of
gradients and moments, clipping, AdamW, EMA. One thread; latents and text states are random. Prints for each
network the seconds of the processor that a step takes without the profiler (least of its rounds), its
multiplications and additions, and their rate as a share of that of a convolution on this machine; then a
table of the groups and one of the operators. There the seconds are those of torch's profiler: an operator's
own, without the operators that it calls. The least of the rounds is taken call by call, so that other work
on the machine disturbs them little.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from time import process_time
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.flops import Action, convolution_peak, gflop_by_operator
from benchmarks.timing import in_turns
from ldm.callbacks.ema import Follower
from ldm.callbacks.gradients import norm_of_moments
from ldm.config import CONF
from ldm.construct import construct
from ldm.evaluation.report import markdown_table

TOKENS = 77  # of a text
# network -> group of its yaml, samples of a step, side of its input
NETWORKS = {
    "unet_tiny": ("backbone", 64, 8),
    "unet_base": ("backbone", 4, 32),
    "dit_tiny": ("backbone", 64, 8),
    "dit_base": ("backbone", 4, 32),
    "kl_f8_tiny": ("autoencoder", 32, 64),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AFTER = ("norms and clipping", "optimizer", "EMA")  # what follows the backward pass: groups of their own
# group -> words; an operator belongs to the first group that has a word of its name
GROUPS = {
    "convolutions": ("conv",),
    "matrix products": ("mm", "scaled_dot_product"),
    "norms": ("norm",),
    "softmax": ("softmax",),
    "copies and layouts": (
        *("copy", "clone", "cat", "contiguous", "_to", "pad", "upsample", "shuffle", "fill", "zero", "empty"),
        *("view", "reshape", "permute", "transpose", "expand", "slice", "split", "select", "as_strided"),
    ),
    "elementwise": (
        *("add", "mul", "sub", "div", "sum", "mean", "silu", "gelu", "exp", "pow", "where", "clamp", "mse"),
        *("neg", "abs", "sqrt", "sin", "cos", "arange"),
    ),
}
INNERMOST = ("mkldnn_convolution", "_slow_conv2d_forward")  # what `convolution`, whose work is counted, calls


@dataclass(frozen=True, kw_only=True)
class Operator:
    """An operator of a step: its own seconds, its calls, and its work as far as torch counts it."""

    name: str
    group: str
    seconds: float
    calls: int
    gflop: float = 0.0


def group_of(name: str) -> str:
    """The group of an operator of the forward or backward pass."""
    found = (group for group, words in GROUPS.items() if any(word in name for word in words))
    return next(found, "rest")


def network(name: str, *, batch: int, side: int, **sizes: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of `conf/`, with other sizes where they are given, and random inputs for it."""
    group = NETWORKS[name][0]
    net = construct(
        OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=True) | sizes
    )
    torch.manual_seed(0)
    if group == "autoencoder":
        latent = (batch, net.latent_channels, side // net.factor, side // net.factor)
        return net, (torch.rand(batch, 3, side, side) * 2 - 1, torch.randn(latent))
    x = torch.randn(batch, net.latent_channels, side, side)
    return net, (x, 1000 * torch.rand(batch), torch.randn(batch, TOKENS, net.context_dim))


def training_step(net: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype) -> Action:
    """A training step on fixed inputs, the first of which has the shape of the output."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    average, parameters = Follower(), [*net.parameters()]
    average.net = deepcopy(net)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = net(*inputs)
        prediction, *others = output if isinstance(output, tuple) else (output,)
        loss = mse_loss(prediction.float(), inputs[0]) + sum(each.kl().mean() for each in others)
        loss.backward()
        with record_function("norms and clipping"):
            norm = get_total_norm([parameter.grad for parameter in parameters])
            torch.stack([norm, norm_of_moments(optimizer, norm.device)]).isfinite().all().item()
            clip_grads_with_norm_(parameters, 1.0, norm)
        with record_function("optimizer"):
            optimizer.step()
            optimizer.zero_grad()
        with record_function("EMA"):
            average.follow(net, 0.001)

    return step


def after(event: Any) -> str | None:
    """The part behind the backward pass to which an event of the profiler belongs, or None."""
    while event is not None:
        if event.name in AFTER:
            return str(event.name)
        event = event.cpu_parent
    return None


def profiled(step: Action, *, rounds: int) -> list[Operator]:
    """The operators of a step, the dearest first; the least of the rounds is taken for each call."""
    step()  # the first one makes the optimizer's moments
    calls: dict[tuple[str, str], list[list[float]]] = defaultdict(list)  # by round, in their order
    for number in range(rounds):
        with profile(activities=[ProfilerActivity.CPU]) as found:
            step()
        for event in found.events():
            name = event.name.removeprefix("aten::")
            name = "autograd's bookkeeping" if name.startswith("autograd::") or "Backward" in name else name
            own = calls[name, after(event) or group_of(name)]
            own += [[] for _ in range(number + 1 - len(own))]
            own[number].append(event.self_cpu_time_total / 1e6)
    work, names = gflop_by_operator(step), {name for name, _ in calls}
    # the work stands where the time does
    work |= {name: work.pop("convolution") for name in INNERMOST if name in names and "convolution" in work}
    operators = [
        Operator(
            name=name,
            group=group,
            seconds=sum(least(seconds)),
            calls=len(least(seconds)),
            gflop=0.0 if group in AFTER else work.get(name, 0.0),
        )
        for (name, group), seconds in calls.items()
    ]
    return sorted(operators, key=lambda operator: -operator.seconds)


def least(rounds: Sequence[list[float]]) -> list[float]:
    """The least of the rounds, call by call; one that lacks calls, which a cache may spare, is left out."""
    most = max(map(len, rounds))
    return [*map(min, zip(*(each for each in rounds if len(each) == most), strict=True))]


def rows(operators: Iterable[Operator], *, of: float) -> list[list[str]]:
    """Rows of a table: name, seconds, share of `of` seconds, calls; work and its rate where it is counted."""
    return [
        [
            own.name if own.group == own.name or own.group not in AFTER else f"{own.name}, {own.group}",
            f"{own.seconds:.4f}",
            f"{own.seconds / of:.1%}",
            f"{own.calls:,}",
            *((f"{own.gflop:.2f}", f"{own.gflop / own.seconds:.0f}") if own.gflop else ("", "")),
        ]
        for own in operators
    ]


def groups(operators: Sequence[Operator]) -> list[Operator]:
    """The sums of each group, the dearest first."""
    sums = []
    for group in {own.group for own in operators}:
        members = [own for own in operators if own.group == group]
        seconds, work = (sum(getattr(own, name) for own in members) for name in ("seconds", "gflop"))
        calls = sum(own.calls for own in members)
        sums.append(Operator(name=group, group=group, seconds=seconds, calls=calls, gflop=work))
    return sorted(sums, key=lambda own: -own.seconds)


def report(title: str, step: Action, *, peak: float, rounds: int, most: int) -> str:
    """The lines and both tables of a network.

    Args:
        peak: GFLOP/s of a convolution.
        most: operators in the table, the dearest.
    """
    seconds = min(in_turns({"": step}, rounds=rounds, clock=process_time)[""])
    operators = profiled(step, rounds=rounds)
    total, work = sum(own.seconds for own in operators), sum(own.gflop for own in operators)
    titles = ["seconds", "share", "calls", "GFLOP", "GFLOP/s"]
    return "\n\n".join(
        [
            f"## {title}",
            f"A step takes {seconds:.3f} s of the processor, {total:.3f} s in the profile: {work:.1f} GFLOP, "
            f"{work / seconds:.0f} GFLOP/s, {work / seconds / peak:.0%} of a convolution's {peak:.0f}.",
            markdown_table(["group", *titles], rows(groups(operators), of=total)),
            markdown_table(["operator", *titles], rows(operators[:most], of=total)),
        ]
    )


def main() -> None:
    """Reads the options and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--net", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=[*PRECISIONS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=16, help="operators in a table, the dearest")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for precision in options.precision:
        dtype = PRECISIONS[precision]
        peak = convolution_peak(dtype, clock=process_time)
        for name in options.net:
            _, batch, side = NETWORKS[name]
            step = training_step(*network(name, batch=batch, side=side), dtype)
            title = f"{name}, batch {batch}, side {side}, {precision}, torch {torch.__version__}"
            print(report(title, step, peak=peak, rounds=options.rounds, most=options.rows), "\n", flush=True)


if __name__ == "__main__":
    main()
