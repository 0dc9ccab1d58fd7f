"""A training that ends when its validation loss has reached a target, with the time that this took."""

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm import UserError
from ldm.io.curves import CPU_SECONDS, LOSS, SECONDS


class Target(Callback):
    """Ends a training at the first validation whose `val/loss_fixed` is at most a target.

    Each validation logs how long the training has taken: `val/seconds` by the clock and `val/cpu_seconds` of
    all cores of this process. Both begin with the first batch, include validations, and continue where a
    resumed training was saved. One that began without a target logs none: its checkpoints have no clocks.

    Args:
        loss: the target; None ends nothing and logs nothing.

    Raises UserError: a target that isn't a positive number, or a stage that doesn't log this loss.
    """

    def __init__(self, *, loss: float | None = None) -> None:
        number = isinstance(loss, int | float) and not isinstance(loss, bool) and math.isfinite(loss)
        if loss is not None and not (number and loss > 0):
            raise UserError(f"target={loss} must be a number above 0, or null: it is a validation loss")
        self.loss, self.reached = loss, False
        self._began: dict[str, float] = {}  # what the clocks showed when this process began to train
        self._earlier: dict[str, float] = {}  # seconds until the checkpoint that was resumed; empty: unknown

    def state_dict(self) -> dict[str, Any]:
        """Seconds that the training has taken so far."""
        return self._spent() if self.loss else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        self._earlier = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        self._began = clocks()
        if trainer.global_step == 0:
            self._earlier = dict.fromkeys(self._began, 0.0)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the seconds so far."""
        if self.loss is not None and not trainer.sanity_checking:
            pl_module.log_dict(self._spent())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the training once the loss is reached; raises UserError for a stage that logs none."""
        if self.loss is None or trainer.sanity_checking:
            return
        if LOSS not in trainer.callback_metrics:
            raise UserError(
                f"target={self.loss}: this stage logs no {LOSS}, only a denoiser's does: leave it out"
            )
        self.reached = trainer.callback_metrics[LOSS].item() <= self.loss
        trainer.should_stop |= self.reached  # Lightning ends the training after this step

    def _spent(self) -> dict[str, float]:
        """Seconds of the training so far by each clock, if those before a resume are known."""
        now = clocks()
        return {name: spent + now[name] - self._began[name] for name, spent in self._earlier.items()}


def clocks() -> dict[str, float]:
    """Seconds by the wall's clock and by that of the process, each from a moment of its own."""
    return {SECONDS: time.monotonic(), CPU_SECONDS: time.process_time()}
