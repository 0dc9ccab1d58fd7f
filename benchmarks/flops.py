"""The work of an action as torch counts it, and the most that this machine does in a second."""

from collections.abc import Callable
from functools import partial
from time import perf_counter

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.timing import in_turns

Action = Callable[[], object]


def gflop_by_operator(action: Action) -> dict[str, float]:
    """Billions of multiplications and additions of one call, by the operator's name in `aten`."""
    with FlopCounterMode(display=False) as counter:
        action()
    counts = counter.get_flop_counts().get("Global", {})
    return {str(operator).removeprefix("aten."): count / 1e9 for operator, count in counts.items()}


def gflop(action: Action) -> float:
    """Billions of multiplications and additions of one call."""
    return sum(gflop_by_operator(action).values())


@torch.inference_mode()
def convolution_peak(
    dtype: torch.dtype = torch.bfloat16, *, rounds: int = 10, clock: Callable[[], float] = perf_counter
) -> float:
    """Best GFLOP/s of a 3x3 convolution of 64x128x16x16, channels-last; `clock` as in `in_turns`."""
    layout = torch.channels_last
    conv = nn.Conv2d(128, 128, 3, padding=1).to(dtype, memory_format=layout)
    x = torch.randn(64, 128, 16, 16, dtype=dtype).contiguous(memory_format=layout)
    action = partial(conv, x)
    return gflop(action) / min(in_turns({"": action}, rounds=rounds, clock=clock)[""])
