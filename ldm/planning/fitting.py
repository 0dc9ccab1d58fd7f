"""One training on this rank: from its config to its bundle."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from ldm import UserError
from ldm.callbacks.new_options import NewOptions
from ldm.callbacks.progress import ProgressBar
from ldm.checkpoints.resuming import check_state, follow_init
from ldm.checkpoints.run import Run, find_run, new_run
from ldm.config import build, build_data, overrides, plain, repeated_keys
from ldm.distributed.ranks import broadcast, is_first
from ldm.io.writing import discard
from ldm.loggers.background import end_all
from ldm.loggers.metrics_log import MetricsLog
from ldm.planning.disk_room import check_needs, needs_of_cache
from ldm.planning.launch_checks import batch_line, caption_lines, check_start, validation_options
from ldm.planning.trainers import make_trainer
from ldm.randomness.seeds import key_of


class EndedEarly(Exception):
    """Training ended before its last step, as a limit of time or a callback asked: it leaves no bundle."""


def fit(config: DictConfig) -> None:
    """Opens the run, trains the stage to its last step and writes the bundle.

    Raises:
        EndedEarly: the trainer stopped before.
    """
    for line in follow_init(config, overrides()):
        tell(line)
    run, identity = find(config)
    if run is not None and run.finished and not run.changed:
        bundle = run.path / "bundle"
        return tell(f"{run.path} is finished; its bundle is {bundle}. For another run: resume=never")
    stage, data = make_stage(config)
    # only now: what can't be built leaves no folder
    started = run is None
    run, identity, state = begin(run, identity, stage, runs=config.runs)
    config.run_dir = str(run.path)  # of which callbacks and loggers make their paths
    announce(config, run, stage, data, state)
    try:
        trainer = trainer_of_run(config, run, data, state)
    except UserError:  # an option of a callback or a logger: a new run leaves no folder that holds nothing
        if started and is_first():
            discard(run.path)
        raise
    trainer.fit(stage, datamodule=data, ckpt_path=state, weights_only=True)
    if trainer.global_step < trainer.max_steps:
        raise EndedEarly(f"the training ended at step {trainer.global_step} of {trainer.max_steps}")
    bundle = stage.write_bundle(run.path / "bundle", config=identity, data=data)
    tell(f"bundle: {bundle}")
    end_all(trainer.loggers, bundle)


def find(config: DictConfig) -> tuple[Run | None, dict[str, Any]]:
    """The run that the command resumes, or none, and the part of its config that a run records."""
    identity = plain(config)
    del identity["run_dir"], identity["dry_run"], identity["patience"]
    runs, resume, changes = (identity.pop(key) for key in ("runs", "resume", "resume_changes"))
    options = {"resume": resume, "changes": changes, "aliases": dict(repeated_keys(config))}
    return broadcast(find_run(runs, config.name, identity, **options) if is_first() else None), identity


def make_stage(config: DictConfig) -> tuple[LightningModule, LightningDataModule]:
    """What is trained and on what, checked against the trainer and the disks.

    Raises:
        UserError: the trainer doesn't suit the stage, or a disk has no room.
    """
    # Initial weights, of which there are 2**32: torch's CPU generator takes no more of a seed. Every later
    # draw is keyed by sample position.
    torch.manual_seed(key_of(config.seed, "weights"))
    stage = build(config.model.stage)
    data = build_data(config, stage)
    check_start(stage, plain(config))
    if is_first():
        check_needs(needs_of_cache(data))
    if config.compile:
        stage.net.compile()
    return stage, data


def begin(
    run: Run | None, identity: dict[str, Any], stage: LightningModule, *, runs: str
) -> tuple[Run, dict[str, Any], Path | None]:
    """A new run, or the one that is resumed with its record brought up to date, its config, and its state."""
    if not is_first():
        return broadcast(None)
    if run is None:
        return broadcast((new_run(runs, identity["name"], identity), identity, None))
    state = run.state()
    if state is not None:
        check_state(state, stage)
    identity |= {"name": run.config()["name"]}  # that of its folder
    run.resumed(identity, step=0 if state is None else step_of(state))
    return broadcast((run, identity, state))


def trainer_of_run(config: DictConfig, run: Run, data: LightningDataModule, state: Path | None) -> Trainer:
    """The trainer with all callbacks and loggers of the config; the log is cut back to the state."""
    log = MetricsLog(run.path / "metrics.jsonl")
    if state is not None:
        log.rewind(step_of(state))
    callbacks = [ProgressBar(config.name), *build(config.callbacks).values()]
    return make_trainer(
        config,
        callbacks=[*callbacks, *([NewOptions()] if run.changed else [])],
        loggers=[log, *([build(config.logger)] if config.logger else [])],
        folder=run.path,
        **validation_options(data),
    )


def announce(
    config: DictConfig, run: Run, stage: LightningModule, data: LightningDataModule, state: Path | None
) -> None:
    """Prints what is trained and how large a step is."""
    size = sum(p.numel() for p in stage.net.parameters())
    verb = "continuing" if state else "starting"
    tell(f"{verb} {run.path}: {size / 1e6:.2f} M parameters, {config.summary}")
    tell(batch_line(plain(config)))
    for line in caption_lines(stage, data) if is_first() else ():
        tell(line)


def tell(line: str) -> None:
    """Prints a line once, whatever the number of ranks."""
    if is_first():
        print(line, flush=True)


def step_of(state: Path) -> int:
    """The step that a training state was saved at."""
    return int(state.parent.name.removeprefix("step="))
