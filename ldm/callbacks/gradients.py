"""Gradients before each update: measured, refused if they aren't finite, and clipped."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class Gradients(Callback):
    """Logs the norm of all gradients, raises if it is NaN or Inf, and scales it down to `clip`.

    A loss that isn't finite has gradients that aren't. The update is refused before it touches a weight, and
    no state is saved after it. (Lightning's own clipping refuses fused optimizers, hence not its option.)

    Args:
        clip: largest norm that is let through.
    """

    def __init__(self, *, clip: float) -> None:
        self.clip = clip
        self._positions: list[int] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._positions = batch["position"].tolist()

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        pl_module.log("train/grad_norm", norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"step {trainer.global_step}: the gradients are not finite, so the step was refused and"
                f" nothing was changed or saved; its batch has positions {self._positions[0]} to"
                f" {self._positions[-1]}:"
                " lower optimizer.lr, or look at these samples"
            )
        torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)
