"""The progress bar: one line for the whole training, with its remaining time and that of what follows it."""

import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm


class ProgressBar(TQDMProgressBar):
    """Lightning's bar under the experiment's name; a training is one pass over one endless stream.

    Args:
        name: what stands before the bar.
    """

    def __init__(self, name: str) -> None:
        super().__init__(refresh_rate=5)
        self.experiment = name

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        bar, done = self.train_progress_bar, trainer.fit_loop.epoch_loop.batch_progress.current.ready
        bar.set_description(self.experiment)
        bar.reset(total=self.total_train_batches)
        bar.initial = bar.n = bar.last_print_n = done  # a resumed run's rate counts its own steps only

    def on_train_epoch_start(self, *_: Any) -> None:
        """Lightning's bar starts here, which a run resumed within its one epoch never passes."""

    def init_validation_tqdm(self) -> Tqdm:
        bar = super().init_validation_tqdm()
        bar.disable = True  # a few batches; the numbers appear behind the training bar
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts from here: a resumed training knows its own pace only."""
        self._started, self._first = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Renews the estimate, of the pace so far with the validations in it."""
        bar, done = trainer.progress_bar_callback, trainer.global_step - self._first
        if not isinstance(bar, ProgressBar) or bar.is_disabled or done == 0 or done % self.every:
            return
        pace = (time.monotonic() - self._started) / done  # seconds per step, with the validations so far
        steps = trainer.max_steps * (1 + self.after) - trainer.global_step
        bar.train_progress_bar.set_description(f"{bar.experiment}, {self.of}: {_minutes(pace * steps)} left")


def _minutes(seconds: float) -> str:
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.0f} s"
