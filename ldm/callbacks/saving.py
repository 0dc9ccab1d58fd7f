"""Training states: at intervals, at the end, and before a signal ends the process."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.checkpoints.store import save_state


class StoppedBySignal(Exception):
    """Training ended between two steps because a signal asked for it; its state is saved."""


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class SaveStates(Callback):
    """Saves the training state every `every` steps and at a signal, always between two steps.

    A signal sets a flag; the step in progress ends, the state is saved and StoppedBySignal is raised. A
    second SIGINT ends the process at once.

    Args:
        folder: where the states go.
        every: steps between two states.
        keep: how many of the newest to keep.
    """

    def __init__(self, *, folder: str, every: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.signalled: int | None = None
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lets a training that had reached its last step go on when it is given more steps."""
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in SIGNALS:
            self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        between_steps = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        step = trainer.global_step
        due = self.signalled is not None or step % self.every == 0 or step == trainer.max_steps
        if between_steps and due and step != self._saved_step:
            # False: the whole state, not the weights alone
            save_state(self.folder, step, lambda path: trainer.save_checkpoint(path, False), keep=self.keep)
            self._saved_step = step
        if between_steps and self.signalled is not None:
            name = signal.Signals(self.signalled).name
            raise StoppedBySignal(f"{name}: stopped at step {step} of {trainer.max_steps}, which is saved")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signalled = number
