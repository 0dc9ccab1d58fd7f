"""Trains a stage: `python -m ldm.train +experiment=<name>`; the same command goes on where a run stopped.

With `dry_run=true` it prints what the training would take, and writes nothing.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from ldm.config import build, entry, plain


@entry("train")
def main(config: DictConfig) -> None:
    """Opens the run, fits the stage, writes the bundle; or tells what that would take."""
    quiet()
    if config.dry_run:
        from ldm.dry_run import dry_run

        return dry_run(config)
    import torch

    from ldm.callbacks.metrics_log import MetricsLog
    from ldm.callbacks.progress import ProgressBar
    from ldm.callbacks.saving import StoppedBySignal
    from ldm.checkpoints.run import find_run, new_run
    from ldm.data.index import DataError

    identity = plain(config)
    del identity["run_dir"], identity["dry_run"]
    runs, resume = identity.pop("runs"), identity.pop("resume")
    run = find_run(runs, config.name, identity, resume=resume)
    if run is not None and run.finished:
        print(f"{run.path} is finished; its bundle is {run.path / 'bundle'}. For another run: resume=never")
        return
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(config.seed)  # initial weights; every later draw is keyed by sample position
    stage, data = build(config.model.stage), build(config.model.datamodule)
    if config.compile:
        stage.net.compile()
    run = run or new_run(runs, config.name, identity)  # only now: what can't be built leaves no folder
    config.run_dir = str(run.path)
    log = MetricsLog(run.path / "metrics.jsonl")
    state = run.state()
    if state is not None:
        log.rewind(step_of(state))
    verb = "continuing" if state else "starting"
    print(f"{verb} {run.path}: {millions(stage.net)} M parameters, {config.summary}")
    trainer = build(
        plain(config.trainer)
        | {
            "callbacks": [ProgressBar(config.name), *build(config.callbacks).values()],
            "logger": [log, *([build(config.logger)] if config.logger else [])],
            "default_root_dir": str(run.path),
        }
    )
    try:
        trainer.fit(stage, datamodule=data, ckpt_path=state, weights_only=True)
    except StoppedBySignal as stopped:
        sys.exit(f"{stopped}; the same command goes on from there")
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a loader process has died ({error}); the same command goes on from there"
        ) from error
    if trainer.is_global_zero:
        print(f"bundle: {stage.write_bundle(Path(run.path) / 'bundle', config=identity, data=data)}")


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


if __name__ == "__main__":
    main()
