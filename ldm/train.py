"""Trains a stage: `python -m ldm.train +experiment=<name>`; the same command goes on where a run stopped.

With `dry_run=true` it prints what the training would take, and writes nothing. A trainer of several ranks is
started here once a rank, unless torchrun or srun has done so.
"""

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Python may lose a KeyboardInterrupt while modules load, the system doesn't
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to save, and a handler for it

from omegaconf import DictConfig

from ldm.commands.answers import refuse
from ldm.config import build, build_data, entry, overrides, plain, repeated_keys
from ldm.distributed.launch import LOST, follow_watcher, launch, ranks_to_start
from ldm.randomness.seeds import key_of


class EndedEarly(Exception):
    """Training ended before its last step, as a limit of time or a callback asked: it leaves no bundle."""


@entry("train")
def main(config: DictConfig) -> None:
    """Starts the ranks of the training, or is one of them; or tells what the training would take."""
    if config.dry_run:
        quiet()
        from ldm.planning.dry_run import dry_run

        return dry_run(config)
    count = ranks_to_start(plain(config.trainer))
    if count == 1:
        follow_watcher()
        return train(config)
    command = [sys.executable, "-m", "ldm.train", *overrides()]
    status, cause = launch(command, count, patience=config.patience)
    if cause:
        refuse(cause)
    if status:
        sys.exit(status)


def train(config: DictConfig) -> None:
    """Opens the run, fits the stage, writes the bundle."""
    quiet()
    import torch

    from ldm.callbacks.saving import StoppedBySignal
    from ldm.data.index import DataError
    from ldm.distributed.ranks import is_lost, join, leave, rank

    torch.set_float32_matmul_precision("high")
    try:
        join()
        fit(config)
        leave()
    except (StoppedBySignal, EndedEarly) as stopped:
        sys.exit(f"{stopped}; the same command goes on from there")
    except RuntimeError as error:
        if is_lost(error):
            print(f"ldm: rank {rank()} has lost another one ({error})", file=sys.stderr, flush=True)
            os._exit(LOST)  # what is left of the group can't be taken apart
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a loader process has died ({error}); the same command goes on from there"
        ) from error


def fit(config: DictConfig) -> None:
    """One training on this rank; the first rank opens the run and prints."""
    import torch

    from ldm.callbacks.new_options import NewOptions
    from ldm.callbacks.progress import ProgressBar
    from ldm.checkpoints.initial import follow_init
    from ldm.distributed.ranks import is_first
    from ldm.loggers.background import end_all
    from ldm.loggers.metrics_log import MetricsLog
    from ldm.planning.disk_room import check_needs, needs_of_cache
    from ldm.planning.launch_checks import batch_line, caption_lines, check_start, plugins, validation_options

    for line in follow_init(config, overrides()):
        tell(line)
    run, identity = find(config)
    if run is not None and run.finished and not run.changed:
        return tell(
            f"{run.path} is finished; its bundle is {run.path / 'bundle'}. For another run: resume=never"
        )
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
    # only now: what can't be built leaves no folder
    run, identity, state = begin(run, identity, stage, runs=config.runs)
    config.run_dir = str(run.path)
    log = MetricsLog(run.path / "metrics.jsonl")
    if state is not None:
        log.rewind(step_of(state))
    verb = "continuing" if state else "starting"
    tell(f"{verb} {run.path}: {millions(stage.net)} M parameters, {config.summary}")
    tell(batch_line(plain(config)))
    for line in caption_lines(stage, data) if is_first() else ():
        tell(line)
    callbacks = [ProgressBar(config.name), *build(config.callbacks).values()]
    trainer = build(
        plain(config.trainer)
        | {
            "callbacks": [*callbacks, *([NewOptions()] if run.changed else [])],
            "logger": [log, *([build(config.logger)] if config.logger else [])],
            "plugins": plugins(plain(config.trainer)),
            "default_root_dir": str(run.path),
        }
        | validation_options(data)
    )
    trainer.fit(stage, datamodule=data, ckpt_path=state, weights_only=True)
    if trainer.global_step < trainer.max_steps:
        raise EndedEarly(f"the training ended at step {trainer.global_step} of {trainer.max_steps}")
    bundle = stage.write_bundle(Path(run.path) / "bundle", config=identity, data=data)
    tell(f"bundle: {bundle}")
    end_all(trainer.loggers, bundle)


def find(config: DictConfig) -> tuple[Any, dict[str, Any]]:
    """The run that the command resumes, or none, and the part of its config that a run records."""
    from ldm.checkpoints.run import find_run
    from ldm.distributed.ranks import is_first, share

    identity = plain(config)
    del identity["run_dir"], identity["dry_run"], identity["patience"]
    runs, resume, changes = (identity.pop(key) for key in ("runs", "resume", "resume_changes"))
    options = {"resume": resume, "changes": changes, "aliases": dict(repeated_keys(config))}
    return share(find_run(runs, config.name, identity, **options) if is_first() else None), identity


def begin(run: Any, identity: dict[str, Any], stage: Any, *, runs: str) -> tuple[Any, dict[str, Any], Any]:
    """A new run, or the one that is resumed with its record brought up to date, its config, and its state."""
    from ldm.checkpoints.resuming import check_state
    from ldm.checkpoints.run import new_run
    from ldm.distributed.ranks import is_first, share

    if not is_first():
        return share(None)
    if run is None:
        return share((new_run(runs, identity["name"], identity), identity, None))
    state = run.state()
    if state is not None:
        check_state(state, stage)
    identity |= {"name": run.config()["name"]}  # that of its folder
    run.resumed(identity, step=0 if state is None else step_of(state))
    return share((run, identity, state))


def tell(line: str) -> None:
    """Prints a line once, whatever the number of ranks."""
    from ldm.distributed.ranks import is_first

    if is_first():
        print(line, flush=True)


def step_of(state: Path) -> int:
    """The step that a training state was saved at."""
    return int(state.parent.name.removeprefix("step="))


def millions(module: Any) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


def quiet() -> None:
    """Silences what other packages print that a user can do nothing about."""
    import pytorch_lightning  # noqa: F401 - it sets its own level when it is imported

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r"The `srun` command is available.*")
    warnings.filterwarnings("ignore", message=r"Grad strides do not match bucket view strides.*")
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor.*")


if __name__ == "__main__":
    main()
