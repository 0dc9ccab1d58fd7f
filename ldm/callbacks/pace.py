"""What a step costs: learning rate, samples a second, memory."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.checkpoints.provenance import peak_memory_mb


class Pace(Callback):
    """Logs `train/lr`, `train/samples_per_second` of all ranks and `train/memory_gb` of the first one.

    They are logged at the steps that are logged anyway. The time of validations does not count. Memory is the
    most so far: what a GPU's allocator has given out, or without a GPU what the process has taken.
    """

    def __init__(self) -> None:
        self._samples, self._rate = 0, 0.0
        self._since = time.monotonic()
        self._paused: float | None = None  # when the validation began that no step has followed yet

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restart()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._paused = time.monotonic()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._paused is not None:  # only now have all callbacks done what they do at a validation's end
            self._since, self._paused = self._since + time.monotonic() - self._paused, None
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the end it is the next step's

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += len(batch["position"]) * trainer.world_size
        last_of_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not last_of_step or not trainer._logger_connector.should_update_logs:
            return
        pl_module.log("train/lr", self._rate)
        pl_module.log("train/samples_per_second", self._samples / (time.monotonic() - self._since))
        peaks = peak_memory_mb()
        pl_module.log("train/memory_gb", peaks.get("gpu", peaks["host"]) / 1000)
        self._restart()

    def _restart(self) -> None:
        self._samples, self._since = 0, time.monotonic()
