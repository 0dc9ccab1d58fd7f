"""The trainer of a config, as a training, a dry run and the benchmarks make it."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import Logger

from ldm.config import build, plain

# What other packages print that a user can do nothing about.
IDLE_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*does not have many workers.*",
    r"The `srun` command is available.*",
    r"Grad strides do not match bucket view strides.*",
    r"FSDP2-wrapped module .* returned a view tensor.*",
)


def make_trainer(
    config: DictConfig,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    folder: Path | None = None,
    **changes: Any,
) -> Trainer:
    """The trainer of a config.

    Args:
        callbacks, loggers: all that it has; those of the config are the caller's choice.
        folder: the run directory, below which Lightning would write what has no other place.
        changes: options of the trainer in place of the config's.
    """
    own = plain(config.trainer)
    given = {"callbacks": [*callbacks], "logger": [*loggers], "plugins": plugins(own)}
    root = {} if folder is None else {"default_root_dir": str(folder)}
    return build(own | given | root | changes)


def plugins(trainer: Mapping[str, Any]) -> list[Any]:
    """A trainer's own plugins; of a task of srun also its place, without Lightning's own queueing again.

    The job queues again by itself (slurm/env.sh) and its checkpoint is saved between two steps
    (callbacks/saving.py); Lightning would do both a second time, inside a step.
    """
    own = list(trainer.get("plugins", []))
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return own
    return [*own, SLURMEnvironment(auto_requeue=False)]


def quiet() -> None:
    """Silences what other packages print that a user can do nothing about."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in IDLE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
