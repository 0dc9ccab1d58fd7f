"""Checkpoints at intervals, at the end and at a signal; options of a training that resumes from one."""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.core.optimizer import _init_optimizers_and_lr_schedulers
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import distributed

from ldm.checkpoints.training_state import discard_damaged, is_readable, save_state


class StoppedBySignal(Exception):
    """A signal ended the training between two steps; its checkpoint is saved."""


def settle(trainer: Trainer) -> None:
    """Raises if the last step was refused; what writes calls it first, since that is known a step later."""
    for callback in trainer.callbacks:
        if hasattr(callback, "settle"):
            callback.settle(trainer)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint directly to its path; Lightning's own goes through memory and the system's /tmp."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes it; OSError if the disk is full."""
        try:
            with Path(path).open("wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # a full disk; torch then fails to clean up
                raise error.__context__ from None
            raise


class SaveStates(Callback):
    """Saves a checkpoint every `every` steps and at a signal, always between two steps.

    A signal to any rank sets a flag; the step in progress ends, the checkpoint is saved and StoppedBySignal
    is raised on every rank. During a validation that is the step after it. A second SIGINT ends the process
    at once. Loader processes don't see these signals, so a signal to the whole job leaves them running.

    Args:
        folder: where the checkpoints go; the same for all ranks, of which the first one writes.
        every: steps between two checkpoints.
        keep: how many of the newest are kept.
    """

    def __init__(self, *, folder: str, every: int, keep: int = 2) -> None:
        self.folder, self.every, self.keep = Path(folder), every, keep
        self.signalled: int | None = None
        self._saved_step = -1
        self._handlers: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Puts `InPlace` in the place of Lightning's own writer."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = InPlace()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lets a finished training continue when it is given more steps.

        A checkpoint is saved before the validation that is due at its step; that validation comes first.
        """
        loops = checkpoint["loops"]["fit_loop"]
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False
        if validates_after(trainer, loops["epoch_loop.batch_progress"]["total"]["ready"]):
            begin_validation(loops)

    def on_fit_start(self, *_: Any) -> None:
        """Blocks the signals until the first batch: loader processes start meanwhile and inherit that."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        """Removes damaged checkpoints after the one that is resumed, and takes the signals over."""
        if trainer.is_global_zero:
            discard_damaged(self.folder, after=trainer.global_step, usable=is_readable)
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup wants the training to outlive its terminal
            self._handlers[number] = signal.signal(number, self._on_signal)
        if trainer.received_sigterm:  # while Lightning's own handler was there
            self.signalled = signal.SIGTERM

    def on_train_batch_start(self, *_: Any) -> None:
        """Lets the signals through."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves what is due; raises StoppedBySignal after a signal to any rank."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # inside a step
        step, number = trainer.global_step, self._signal_to_any(trainer)
        due = number or step % self.every == 0 or step == trainer.max_steps
        if due and step != self._saved_step:
            settle(trainer)
            self._save(trainer, step)
        if number:
            trainer._logger_connector.on_batch_end()  # Lightning would log the step after this hook
            trainer._logger_connector.update_train_step_metrics()
            name = signal.Signals(number).name
            raise StoppedBySignal(f"{name}: stopped at step {step} of {trainer.max_steps}, which is saved")

    def on_train_end(self, *_: Any) -> None:
        """Gives the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    on_exception = on_train_end

    def _save(self, trainer: Trainer, step: int) -> None:
        """All ranks gather the training state, the first one writes it."""

        def _write(path: Path) -> None:
            if trainer.world_size > 1:
                path = path.resolve()  # its name is broadcast: the other ranks write their shards to it
            trainer.save_checkpoint(path, False)  # not the weights alone

        if trainer.is_global_zero:
            save_state(self.folder, step, _write, keep=self.keep)
        else:
            _write(self.folder)
        self._saved_step = step

    def _signal_to_any(self, trainer: Trainer) -> int:
        """The largest number of a signal that any rank has received, or 0; the same on every rank."""
        number = torch.tensor(self.signalled or 0)  # on the host: no step waits for a GPU
        if trainer.world_size > 1:
            distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
        return int(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signalled is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        for stream in (1, 2) if number == signal.SIGHUP else ():
            try:
                os.write(stream, b"")
            except OSError:  # its terminal has gone: the next line of progress would fail before the save
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        self.signalled = number


def validates_after(trainer: Trainer, batch: int) -> bool:
    """Whether a validation follows this batch, counted from 1 over the whole training."""
    counted = trainer.check_val_every_n_epoch is None and isinstance(trainer.val_check_interval, int)
    return counted and trainer.enable_validation and batch % trainer.val_check_interval == 0


def begin_validation(loops: dict[str, Any]) -> None:
    """Turns a checkpoint's loop state into one saved at the start of a validation, before its first batch.

    Lightning counts the step when it restores such a state and again when the validation ends, hence the -1.
    """
    validation = loops["epoch_loop.val_loop.batch_progress"]
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    validation |= {"total": none | {"ready": 1, "started": 1}, "current": none, "is_last_batch": False}
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


class NewOptions(Callback):
    """Gives resumed optimizers the options of the new command in place of those in the checkpoint.

    A checkpoint holds an optimizer's moments, its options, and the base rates of the schedule. The moments
    stay; the learning rates are those of the new options from the first resumed step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replaces the options, once Lightning has loaded the checkpoint's."""
        fresh, schedules = _init_optimizers_and_lr_schedulers(pl_module)
        for resumed, made in zip(trainer.optimizers, fresh, strict=True):
            for group, wanted in zip(resumed.param_groups, made.param_groups, strict=True):
                group.update({key: value for key, value in wanted.items() if key != "params"})
        for resumed, made in zip(trainer.lr_scheduler_configs, schedules, strict=True):
            schedule, bases = resumed.scheduler, made.scheduler.base_lrs
            factors = (factor(schedule.last_epoch) for factor in schedule.lr_lambdas)
            rates = [base * factor for base, factor in zip(bases, factors, strict=True)]
            schedule.base_lrs, schedule._last_lr = bases, rates
            for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
