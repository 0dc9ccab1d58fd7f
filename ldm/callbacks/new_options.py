"""A training that is resumed with other options of its optimizer or its schedule."""

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.core.optimizer import _init_optimizers_and_lr_schedulers


class NewOptions(Callback):
    """Gives the resumed optimizers the options of this command in place of those in the checkpoint.

    A checkpoint holds, beside an optimizer's moments, the options that it had, and the schedule's base rates.
    The moments stay; learning rates are those of the new options from the first resumed step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
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
