"""One training on this rank: from its config to its bundle."""

import ctypes
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningDataModule, Trainer
from pytorch_lightning.loggers import Logger

from ldm import UserError
from ldm.callbacks.pace import ProgressBar, Target
from ldm.callbacks.saving import NewOptions
from ldm.checkpoints.resuming import check_state, follow_init
from ldm.checkpoints.run import Run, find_run, new_run
from ldm.checkpoints.training_state import step_of
from ldm.config import build, build_data, overrides, plain, repeated_keys
from ldm.distributed.ranks import broadcast, is_first
from ldm.io.writing import discard
from ldm.loggers.background import end_all, say
from ldm.loggers.metrics_log import MetricsLog
from ldm.planning.checks import (
    batch_line,
    caption_lines,
    check_needs,
    check_start,
    check_target,
    needs_of_cache,
    validation_options,
)
from ldm.randomness.seeds import key_of
from ldm.stages.stage import Stage

# Warnings of other packages that a user can do nothing about.
IDLE_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*does not have many workers.*",
    r"You have overridden `transfer_batch_to_device`.*",
    r"The `srun` command is available.*",
    r"Grad strides do not match bucket view strides.*",
    r"FSDP2-wrapped module .* returned a view tensor.*",
)


class EndedEarly(Exception):
    """The training ended before its last step, as a time limit or a callback asked; there is no bundle."""


def make_trainer(
    config: DictConfig,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
    folder: Path | None = None,
    **changes: Any,
) -> Trainer:
    """The trainer of a config, for a training, a dry run or a benchmark.

    Args:
        callbacks, loggers: those of the config are added only if the caller passes them here.
        folder: the run directory, below which Lightning writes what has no other place.
        changes: options of the trainer in place of the config's.
    """
    own = plain(config.trainer)
    plugins = [*own.get("plugins", [])]
    # else Lightning queues a SLURM job again and saves inside a step; see slurm/env.sh, callbacks/saving.py
    if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))
    given = {"callbacks": [*callbacks], "logger": [*loggers], "plugins": plugins}
    root = {} if folder is None else {"default_root_dir": str(folder)}
    return build(own | given | root | changes)


def quiet() -> None:
    """Silences what other packages print that a user can do nothing about."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in IDLE_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for new ones; without glibc it does nothing.

    glibc gives back everything above 32 MB at once, and the system clears the pages that it hands out next:
    an elementwise operation on such a tensor takes ten times as long. The price is a higher peak.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing gets a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


def fit(config: DictConfig) -> None:
    """Opens the run, trains the stage, writes the bundle; raises EndedEarly if the trainer stopped early."""
    for line in follow_init(config, overrides()):
        say(line)
    run, identity = find(config)
    if run is not None and run.finished and not run.changed:
        bundle = run.path / "bundle"
        return say(f"{run.path} is finished; its bundle is {bundle}. For another run: resume=never")
    stage, data = make_stage(config)
    # only now: what can't be built leaves no folder
    started = run is None
    run, identity, state = begin(run, identity, stage, runs=config.runs)
    config.run_dir = str(run.path)  # callbacks and loggers make their paths from it
    verb, size = "continuing" if state else "starting", sum(p.numel() for p in stage.net.parameters())
    say(f"{verb} {run.path}: {size / 1e6:.2f} M parameters, {config.summary}")
    say(batch_line(plain(config)))
    for line in caption_lines(stage, data) if is_first() else ():  # all captions are tokenized for it
        say(line)
    try:
        trainer = trainer_of_run(config, run, data, state)
    except UserError:  # an option of a callback or a logger: a new run leaves no folder that holds nothing
        if started and is_first():
            discard(run.path)
        raise
    trainer.fit(stage, datamodule=data, ckpt_path=state, weights_only=True)
    reached = any(isinstance(each, Target) and each.reached for each in trainer.callbacks)
    if trainer.global_step < trainer.max_steps and not reached:
        raise EndedEarly(f"the training ended at step {trainer.global_step} of {trainer.max_steps}")
    bundle = stage.write_bundle(run.path / "bundle", config=identity, data=data)
    say(f"bundle: {bundle}")
    end_all(trainer.loggers, bundle)


def find(config: DictConfig) -> tuple[Run | None, dict[str, Any]]:
    """The run that the command resumes, or None, and the part of its config that a run records."""
    identity = plain(config)
    del identity["run_dir"], identity["dry_run"], identity["patience"]
    runs, resume, changes = (identity.pop(key) for key in ("runs", "resume", "resume_changes"))
    options = {"resume": resume, "changes": changes, "aliases": dict(repeated_keys(config))}
    return broadcast(find_run(runs, config.name, identity, **options) if is_first() else None), identity


def make_stage(config: DictConfig) -> tuple[Stage, LightningDataModule]:
    """Stage and data; UserError if the trainer doesn't suit the stage, or a disk lacks room for the cache."""
    # Only the initial weights use torch's global generator; all later randomness is keyed by position.
    torch.manual_seed(key_of(config.seed, "weights"))
    stage = build(config.model.stage)
    data = build_data(config, stage)
    check_start(stage, plain(config))
    check_target(plain(config), stage, data)
    if is_first():
        check_needs(needs_of_cache(data))
    if config.compile:
        stage.net.compile()
    return stage, data


def begin(
    run: Run | None, identity: dict[str, Any], stage: Stage, *, runs: str
) -> tuple[Run, dict[str, Any], Path | None]:
    """The new or resumed run with its record brought up to date, its config, and its newest checkpoint."""
    if not is_first():  # one rank makes the folder, and the others hear of it
        return broadcast(None)
    if run is None:
        return broadcast((new_run(runs, identity["name"], identity), identity, None))
    state = run.state()
    if state is not None:
        check_state(state, stage)
    identity |= {"name": run.config()["name"]}  # that of its folder
    run.resumed(identity, step=0 if state is None else step_of(state.parent))
    return broadcast((run, identity, state))


def trainer_of_run(config: DictConfig, run: Run, data: LightningDataModule, state: Path | None) -> Trainer:
    """The trainer with all callbacks and loggers of the config; the log is cut back to the checkpoint."""
    log = MetricsLog(run.path / "metrics.jsonl")
    log.rewind(0 if state is None else step_of(state.parent))  # a run that never saved begins anew
    callbacks = [ProgressBar(config.name), *build(config.callbacks).values()]
    return make_trainer(
        config,
        callbacks=[*callbacks, *([NewOptions()] if run.changed else [])],
        loggers=[log, *([build(config.logger)] if config.logger else [])],
        folder=run.path,
        **validation_options(data),
    )
