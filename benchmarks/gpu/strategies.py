"""DDP and FSDP on one device: the same losses as without them, and what they cost."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from pytorch_lightning import Callback

from benchmarks.configs import training_config
from benchmarks.gpu.machine import Machine, largest
from benchmarks.gpu.rows import Row, bounded
from ldm.config import build
from ldm.distributed.ranks import leave
from ldm.planning.dry_run import ALONE, made_up_stage
from ldm.planning.fitting import make_trainer
from ldm.planning.trial import Observer

STEPS = 6
LOSSES = 1e-2  # bfloat16, and sums in another order


class Losses(Callback):
    """The loss of each step."""

    def __init__(self) -> None:
        self.losses: list[Any] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Keeps it."""
        self.losses.append(loss.detach().clone())


def strategies(machine: Machine) -> Iterator[Row]:
    """Rows of `trainer=ddp` and `trainer=fsdp`, with one rank."""
    (config,) = machine.configs("flickr_base").values()
    alone, seconds = trained(config, strategy="auto")
    for name in ("ddp", "fsdp"):
        strategy = build(training_config([f"trainer={name}"]).trainer.strategy)
        try:
            losses, own = trained(config, strategy=strategy)
        finally:
            leave()
        yield bounded(f"trainer={name}: losses differ by", largest(losses, alone), LOSSES)
        yield Row(what=f"trainer={name}: time of a step relative to none", value=own / seconds)


def trained(config: Any, **options: Any) -> tuple[list[Any], float]:
    """Losses and seconds of a few steps."""
    torch.manual_seed(0)
    stage, _ = made_up_stage(config)
    losses, observer = Losses(), Observer(metering=False)
    batches = [stage.example_batch(config.batch_size, size=config.data.size) for _ in range(STEPS)]
    steady = [build(config.callbacks[each]) for each in ("ema", "gradients")]
    trainer = partial(make_trainer, config, **{**ALONE, "accelerator": "auto", **options})(
        callbacks=[*steady, losses, observer], max_steps=STEPS
    )
    trainer.fit(stage, torch.utils.data.DataLoader(batches, batch_size=None))
    return losses.losses, min(observer.seconds[2:])
