"""Gradients before each update: measured, refused if they are not finite, and clipped."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ldm import NotFinite
from ldm.distributed.ranks import all_gather, any_rank, is_first, whole
from ldm.io.writing import LinkRefused, write

RECORD = "refused.json"


class Step(NamedTuple):
    """An optimizer step whose numbers may still be on the device."""

    number: int
    losses: list[Tensor]  # of each of its batches
    batches: list[dict[str, Tensor]]  # positions and indices
    scaled: bool  # whether a smaller loss scale may help
    flags: Tensor  # on the host: whether gradients, losses, moments are not finite on any rank
    copied: torch.cuda.Event | None  # when the flags are there; None: now

    def fault(self) -> str:
        """What is not finite on any rank, in words; "" if everything is, or if a smaller scale may help."""
        if self.copied is not None:
            self.copied.synchronize()
        of_norm, of_losses, of_moments = self.flags.tolist()
        if of_norm and (of_losses or not self.scaled):
            return "gradients"
        return "losses" if of_losses else "optimizer's moments" if of_moments else ""


class Gradients(Callback):
    """Logs the norm of all gradients, scales it down to `clip`, and refuses steps that are not finite.

    A step is refused on all ranks if the norm, a loss or an optimizer's moments are NaN or infinite on any:
    it changes no weight and no moment, and no checkpoint is saved after it. A fused optimizer skips such a
    step on its device, and the host learns of it at the next step, or before anything is logged, validated
    or saved; with others it waits in each step. With float16, an infinite norm of finite losses first means
    that the loss scale is too large: the scaler skips such steps and halves the scale, until it is below 1.
    (Lightning's own option refuses to clip for fused optimizers.)

    Args:
        clip: largest norm that is let through.
        folder: where `refused.json` records the batches of a refused step, rank by rank.
    """

    def __init__(self, *, clip: float, folder: str | None = None) -> None:
        self.clip, self.folder = clip, folder
        self._batches: list[dict[str, Tensor]] = []  # of the current step, and the loss of each
        self._losses: list[Tensor] = []
        self._unsettled: Step | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keeps the batches of a step."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._batches, self._losses = [], []
        self._batches.append({name: batch[name] for name in ("position", "index")})

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keeps the loss of each batch."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Logs the norm and clips; raises NotFinite for the step before this one, or for this one."""
        self.settle(trainer)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # Lightning leaves this to fused optimizers
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
        pl_module.log("train/grad_norm", norm)
        numbers = (norm, torch.stack(self._losses).sum(), norm_of_moments(optimizer, norm.device))
        flags = any_rank(~torch.stack([number.float() for number in numbers]).isfinite())
        self._unsettled = Step(
            number=trainer.global_step,
            losses=self._losses,
            batches=self._batches,
            scaled=scaler is not None and scaler.get_scale() >= 1,
            flags=flags.to("cpu", non_blocking=True),
            copied=torch.cuda.current_stream().record_event() if flags.is_cuda else None,
        )
        skips = scaler is None and getattr(optimizer, "_step_supports_amp_scaling", False)
        if skips:
            optimizer.found_inf = flags.any().float()  # as a scaler would tell the optimizer
        if not skips or trainer._logger_connector.should_update_logs:
            self.settle(trainer)
        torch.nn.utils.clip_grads_with_norm_(parameters, self.clip, norm)

    def settle(self, trainer: Trainer) -> None:
        """Raises NotFinite if the last step was refused, once that is known."""
        step, self._unsettled = self._unsettled, None
        if step is not None and (fault := step.fault()):
            raise self._refusal(trainer, step, fault)

    def on_validation_start(self, trainer: Trainer, *_: Any) -> None:
        """Settles the last step, before anything validates or samples what it left."""
        self.settle(trainer)

    on_train_end = on_validation_start

    def _refusal(self, trainer: Trainer, step: Step, what: str) -> NotFinite:
        """The error, once the batches of all ranks are written."""
        ranks = all_gather(
            {
                "losses": [str(loss.item()) for loss in step.losses],  # as text: json has no NaN
                "positions": [position for batch in step.batches for position in batch["position"].tolist()],
                "keys": [key for batch in step.batches for key in keys(trainer, batch)],
            }
        )
        written = ""
        if self.folder is not None:
            path = Path(self.folder) / RECORD
            written = f"its batches are in {path}: "
            try:
                if is_first():
                    write(path, json.dumps({"step": step.number, "ranks": ranks}, indent=1) + "\n")
            except (OSError, LinkRefused) as error:  # must not hide the error of the step
                written = f"its batches could not be written ({error}): "
        guilty = [n for n, rank in enumerate(ranks) if {"nan", "inf", "-inf"} & set(rank["losses"])]
        of_ranks = f" (the loss is not finite on ranks {guilty})" if guilty and len(ranks) > 1 else ""
        positions = [position for rank in ranks for position in rank["positions"]]
        return NotFinite(
            f"step {step.number}: the {what} are not finite{of_ranks}, so the step was refused and"
            f" nothing was changed or saved; its batch has positions {min(positions)} to {max(positions)}:"
            f" {written}lower optimizer.lr, or look at these samples"
        )


def norm_of_moments(optimizer: Optimizer, device: torch.device) -> Tensor:
    """Norm of an optimizer's moments, a scalar on a device; NaN or infinite if any value is."""
    values = [value for state in optimizer.state.values() for value in state.values()]
    moments = [value for value in values if isinstance(value, Tensor) and value.ndim > 0]
    return whole(torch.nn.utils.get_total_norm(moments)).to(device)  # of none: on the host


def keys(trainer: Trainer, batch: Any) -> list[str]:
    """Keys of a batch's pictures in their shards; none for data that has no reader."""
    pictures = getattr(trainer.datamodule, "pictures", trainer.datamodule)
    reader = getattr(getattr(pictures, "train", None), "reader", None)
    if reader is None:
        return []
    names = reader.keys()
    return [names[number] for number in batch["index"].tolist()]
