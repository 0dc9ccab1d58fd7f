"""The time that a training takes: progress bar, speed, and the time to reach a target."""

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from ldm import UserError
from ldm.checkpoints.provenance import peak_memory_mb
from ldm.io.curves import CPU_SECONDS, LOSS, SECONDS


class ProgressBar(TQDMProgressBar):
    """Lightning's bar under the experiment's name: one line for the whole training."""

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5)
        self.experiment = name

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the bar at the run's step, so that a resumed run's rate counts its own steps only."""
        super().on_train_start(trainer, *_)
        bar, done = self.train_progress_bar, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar.set_description(self.experiment)
        bar.reset(total=self.total_train_batches)
        bar.initial = bar.n = bar.last_print_n = done

    def on_train_epoch_start(self, *_: Any) -> None:
        """Does nothing: a run that resumes inside its one epoch would never start the bar here."""

    def init_validation_tqdm(self) -> Tqdm:
        """No bar: a validation has a few batches, and its numbers appear behind the training's bar."""
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar

    def get_metrics(self, *of: Any) -> dict[str, Any]:
        """The metrics behind the bar, without `v_num`, Lightning's number of a run."""
        return {name: value for name, value in super().get_metrics(*of).items() if name != "v_num"}


class Pace(Callback):
    """Logs `train/lr`, `train/samples_per_second` of all ranks and `train/memory_gb` of the first one.

    The time of validations does not count. Memory is the peak so far, of the GPU's allocator, or of the
    process where there is no GPU.
    """

    def __init__(self) -> None:
        self._samples, self._rate = 0, 0.0
        self._since = 0.0
        self._paused: float | None = None  # when a validation began that no step has followed yet

    def on_train_start(self, *_: Any) -> None:
        """Counts from here."""
        self._samples, self._since = 0, time.monotonic()

    def on_validation_start(self, *_: Any) -> None:
        """Stops the clock."""
        self._paused = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Starts the clock again: only now have all callbacks finished with the validation."""
        if self._paused is not None:
            self._since, self._paused = self._since + time.monotonic() - self._paused, None
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the end it is the next step's

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the numbers in the same line as the others of the step."""
        self._samples += len(batch["position"]) * trainer.world_size
        last_of_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not last_of_step or not trainer._logger_connector.should_update_logs:
            return
        pl_module.log("train/lr", self._rate)
        pl_module.log("train/samples_per_second", self._samples / (time.monotonic() - self._since))
        peaks = peak_memory_mb()
        pl_module.log("train/memory_gb", peaks.get("gpu", peaks["host"]) / 1000)
        self.on_train_start()


class Target(Callback):
    """Ends a training at the first validation whose `val/loss_fixed` is at most `loss`.

    Each validation logs how long the training has taken: `val/seconds` by the clock and `val/cpu_seconds` of
    all cores of this process. Both begin with the first batch, include validations, and continue where a
    resumed training was saved. One that began without a target, `loss` None, logs none: its checkpoints have
    no clocks. Raises UserError for a target that isn't a positive number.
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
        """Ends the training once the loss is reached."""
        if self.loss is None or trainer.sanity_checking:
            return
        self.reached = trainer.callback_metrics[LOSS].item() <= self.loss
        trainer.should_stop |= self.reached  # Lightning ends the training after this step

    def _spent(self) -> dict[str, float]:
        """Seconds of the training so far by each clock, if those before a resume are known."""
        now = clocks()
        return {name: spent + now[name] - self._began[name] for name, spent in self._earlier.items()}


def clocks() -> dict[str, float]:
    """Seconds by the wall's clock and by that of the process, each from a moment of its own."""
    return {SECONDS: time.monotonic(), CPU_SECONDS: time.process_time()}
