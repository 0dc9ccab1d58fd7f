"""Gradients before each update: measured, refused if they are not finite, and clipped."""

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from ldm import NotFinite
from ldm.distributed.ranks import all_gather, any_rank, is_first, whole
from ldm.io.links import LinkRefused
from ldm.io.writing import write

RECORD = "refused.json"


class Gradients(Callback):
    """Logs the norm of all gradients, scales it down to `clip`, and refuses steps that are not finite.

    A step is refused on all ranks if the norm, a loss or an optimizer's moments are NaN or infinite on any:
    before it changes a weight, and with no checkpoint saved after it. With float16, an infinite norm of
    finite losses first means that the loss scale is too large: the scaler skips such steps and halves the
    scale, until it is below 1. (Lightning's own option refuses to clip for fused optimizers.)

    Args:
        clip: largest norm that is let through.
        folder: where `refused.json` records the batches of a refused step, rank by rank.
    """

    def __init__(self, *, clip: float, folder: str | None = None) -> None:
        self.clip, self.folder = clip, folder
        self._batches: list[Any] = []  # of the current step, and the loss of each
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batches of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keeps the loss of each batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs the norm and clips; raises NotFinite where the norm, a loss or a moment is not finite."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves this to fused optimizers
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        pl_module.log("train/grad_norm", norm)
        if fault := self._fault(norm, optimizer, scaler):
            raise self._refusal(trainer, fault)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def _fault(self, norm: Tensor, optimizer: Optimizer, scaler: GradScaler | None) -> str:
        """What is not finite on any rank, in words; "" if everything is, or if a smaller scale may help."""
        own = (norm, norm_of_moments(optimizer), torch.stack(self._losses).sum())
        of_norm, of_moments, of_losses = any_rank([not torch.isfinite(each) for each in own])
        overflow = scaler is not None and scaler.get_scale() >= 1 and not of_losses
        if of_norm and not overflow:
            return "gradients"
        return "losses" if of_losses else "optimizer's moments" if of_moments else ""

    def _refusal(self, trainer: Trainer, what: str) -> NotFinite:
        """The error, once the batches of all ranks are written."""
        ranks = all_gather(
            {
                "losses": [str(loss.item()) for loss in self._losses],  # as text: json has no NaN
                "positions": [position for batch in self._batches for position in batch["position"].tolist()],
                "keys": [key for batch in self._batches for key in keys(trainer, batch)],
            }
        )
        written = ""
        if self.folder is not None:
            path = Path(self.folder) / RECORD
            written = f"its batches are in {path}: "
            try:
                if is_first():
                    write(path, json.dumps({"step": trainer.global_step, "ranks": ranks}, indent=1) + "\n")
            except (OSError, LinkRefused) as error:  # must not hide the error of the step
                written = f"its batches could not be written ({error}): "
        guilty = [n for n, rank in enumerate(ranks) if {"nan", "inf", "-inf"} & set(rank["losses"])]
        of_ranks = f" (the loss is not finite on ranks {guilty})" if guilty and len(ranks) > 1 else ""
        positions = [position for rank in ranks for position in rank["positions"]]
        return NotFinite(
            f"step {trainer.global_step}: the {what} are not finite{of_ranks}, so the step was refused and"
            f" nothing was changed or saved; its batch has positions {min(positions)} to {max(positions)}:"
            f" {written}lower optimizer.lr, or look at these samples"
        )


def norm_of_moments(optimizer: Optimizer) -> Tensor:
    """Norm of an optimizer's moments, a scalar; NaN or infinite if any value is."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    moments = [value for value in values if isinstance(value, Tensor) and value.ndim > 0]
    return whole(torch.nn.utils.get_total_norm(moments))


def keys(trainer: Trainer, batch: Any) -> list[str]:
    """Keys of a batch's pictures in their shards; none for data that has no reader."""
    pictures = getattr(trainer.datamodule, "pictures", trainer.datamodule)
    reader = getattr(getattr(pictures, "train", None), "reader", None)
    if reader is None:
        return []
    names = reader.keys()
    return [names[number] for number in batch["index"].tolist()]
