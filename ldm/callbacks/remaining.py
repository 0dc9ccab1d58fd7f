"""The time left of a series of commands, before the progress bar of each."""

import time
from typing import Any

from pytorch_lightning import Callback, Trainer

from ldm.callbacks.pace import ProgressBar


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
