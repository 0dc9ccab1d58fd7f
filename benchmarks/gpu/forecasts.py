"""Memory and time of training steps against what `dry_run=true` and docs/scaling.md foretell of them."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.flops import gflop
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import Row, foretold
from benchmarks.scaling_model import (
    HBM,
    JITTER,
    LATENCY,
    MFU,
    NVLINK,
    OVERLAP,
    PEAK,
    REACHED,
    STATE,
    TRAFFIC,
    Training,
    step,
)
from ldm.config import build
from ldm.planning.dry_run import ALONE, made_up_stage
from ldm.planning.fitting import make_trainer
from ldm.planning.trial import Trier, checkpointed, num_bytes

GB, MODEL, DRY_RUN = 1e9, "docs/scaling.md", "dry_run=true"
STEADY = ("ema", "gradients")  # callbacks that are part of every step
BETWEEN_GPUS = {  # lines of the model that one GPU says nothing of
    "NVLink, each direction": f"{NVLINK / 1e9:.0f} GB/s",
    "share of a link's speed that messages reach": f"{100 * REACHED:.0f} %",
    "latency of one hop of a ring": f"{1e6 * LATENCY:.0f} us",
    **{f"overlap with the messages of {name}": f"{100 * share:.0f} %" for name, share in OVERLAP.items()},
    "spread of the ranks' steps": f"{100 * JITTER:.0f} %",
}
MEMORY = 2**40  # bytes that a trial may take: a size that is too large shows as a failed part


def forecasts(machine: Machine) -> Iterator[Row]:
    """Rows of the machine's own speeds, of training steps, and of lines that one GPU can't confirm."""
    yield from speeds(machine)
    yield from update(machine)
    machine.forget()
    for name, config in machine.configs("flickr_base", "sd15_finetune").items():
        machine.forget()
        yield from training(machine, name, config)
    for what, taken in BETWEEN_GPUS.items():
        yield Row(what=what, value=None, against=f"{taken} ({MODEL})", verdict="needs several GPUs")


def speeds(machine: Machine) -> Iterator[Row]:
    """A large matrix product and a large copy: the fastest that this GPU does."""
    side = machine.scaled(8192, 128)
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=machine.device) for _ in range(2))
    product = partial(torch.mm, a, b)
    rate = gflop(product) * 1e9 / machine.seconds(product)
    yield foretold("bfloat16 matrix product", on_gpu(machine, rate / 1e12), PEAK / 1e12, "T/s", source=MODEL)
    numbers = torch.randn(machine.scaled(2**29, 2**12), device=machine.device)
    there = torch.empty_like(numbers)
    rate = 2 * numbers.nbytes / machine.seconds(partial(there.copy_, numbers))
    yield foretold("memory, read and written", on_gpu(machine, rate / 1e12), HBM / 1e12, "TB/s", source=MODEL)


def update(machine: Machine) -> Iterator[Row]:
    """What AdamW and the EMA hold, read and write for each parameter."""
    side, device = machine.scaled(8192, 32), machine.device
    net, average = (nn.Linear(side, side, bias=False, device=device) for _ in range(2))
    average.requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net.weight.grad = torch.randn_like(net.weight)

    def act() -> None:
        optimizer.step()
        torch._foreach_lerp_([average.weight], [net.weight.detach()], 0.001)

    numbers = torch.randn(side * side, device=device)
    there = torch.empty_like(numbers)
    act()
    bandwidth = 2 * numbers.nbytes / machine.seconds(partial(there.copy_, numbers))
    moved = on_gpu(machine, machine.seconds(act) * bandwidth / net.weight.numel())
    yield foretold("update: bytes moved per parameter", moved, TRAFFIC, "bytes", source=MODEL)
    states = [value for value in optimizer.state[net.weight].values() if value.ndim]
    held = num_bytes([net.weight, net.weight.grad, average.weight, *states]) / net.weight.numel()
    yield foretold("states: bytes per parameter", held, STATE, "bytes", source=MODEL)


def training(machine: Machine, name: str, config: Any) -> Iterator[Row]:
    """Peak memory and seconds of a micro-batch of a training, with the callbacks that act in every step."""
    stage, _ = made_up_stage(config)
    own = {"accelerator": "auto", **ALONE}
    trier = Trier(
        stage=stage,
        make_trainer=partial(make_trainer, config, **own),
        size=config.data.size,
        batch_size=config.batch_size,
        memory=MEMORY,
    )
    chosen = any(module.checkpointing for module in checkpointed(stage))
    trial, held = trier.attempt(checkpointing=chosen, averages=1)
    count = config.batch_size

    def with_callbacks(*, callbacks: list[Any], max_steps: int) -> Any:
        steady = [build(config.callbacks[each]) for each in STEADY]
        return make_trainer(config, callbacks=[*steady, *callbacks], max_steps=max_steps, **own)

    machine.forget()
    observer, _ = Trier(**{**vars(trier), "make_trainer": with_callbacks}).run([count] * 5, metering=False)
    peak = torch.cuda.max_memory_allocated() / GB if machine.on_gpu else None
    need = trial.need(held, count) / GB
    yield foretold(f"{name}: peak memory, {count} samples at a time", peak, need, "GB", source=DRY_RUN)
    seconds = on_gpu(machine, min(observer.seconds[2:]))
    alone = Training(
        name=name,
        parameters=sum(p.numel() for p in stage.net.parameters()),
        operations=trial.operations,
        samples=count,
    )
    expected = step(alone, 1, mfu=MFU, network=1.0)
    yield foretold(f"{name}: step of {count} samples", seconds, expected, "s", source=MODEL)
    if seconds is not None:
        share = count * trial.operations / seconds / PEAK
        yield foretold(f"{name}: share of the peak", 100 * share, 100 * MFU, "%", source=MODEL)


def on_gpu(machine: Machine, value: float) -> float | None:
    """A value that says something of the model, which is one of a GPU; None on a CPU."""
    return value if machine.on_gpu else None
