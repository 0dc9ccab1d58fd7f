"""How fast a training is: the progress bar, time left of a series, and speed and memory in the log."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from ldm.checkpoints.provenance import peak_memory_mb


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
        """What stands behind the bar: all but `v_num`, Lightning's number of a run."""
        return {name: value for name, value in super().get_metrics(*of).items() if name != "v_num"}


class Remaining(Callback):
    """Puts the remaining time of a series of commands, of which this training is one, before the bar.

    Args:
        of: name of the series.
        after: how long the rest of the series takes after this training, in durations of this training. A
            duration would be right on one machine; a ratio is about right on every one.
        every: steps between two estimates.
    """

    def __init__(self, *, of: str, after: float, every: int = 5) -> None:
        self.of, self.after, self.every = of, after, every
        self._started, self._first = 0.0, 0  # time and step at which this process began

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Counts from here: a resumed training knows its own pace only."""
        self._started, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Renews the estimate from the pace so far, validations included."""
        bar, done = trainer.progress_bar_callback, trainer.global_step - self._first
        if not isinstance(bar, ProgressBar) or bar.is_disabled or done == 0 or done % self.every:
            return
        pace = (time.monotonic() - self._started) / done  # seconds per step
        steps = trainer.max_steps * (1 + self.after) - trainer.global_step
        bar.train_progress_bar.set_description(f"{bar.experiment}, {self.of}: {_minutes(pace * steps)} left")


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"


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
