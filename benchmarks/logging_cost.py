"""What logging adds to a step: the same training with its loggers at every second step, in one process.

    python -m benchmarks.logging_cost [--service answers|black_hole|drips|errs] [--shape base] [key=value ...]

Trains a stage of the config (`key=value` changes it: `batch_size=16`, `+experiment=emoji_vae`) on made-up
samples with metrics.jsonl, W&B and TensorBoard, all of them logging at every step that has them, ten times as
often as by default. With `--service`, W&B sends to a service on this machine that behaves so. Prints

    ratio       median over pairs of neighbours: seconds of a step with loggers / of one without
    in calls    share of a step's time that the training spent inside the loggers' methods
    default     the same share when every 10th step is logged

The bound is 1 %. Take the numbers on an idle machine.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader

from benchmarks.configs import add_trained_shape, trained, training_config
from benchmarks.wandb_services import KEY, Behaviour, Service, answers, black_hole, drips, errs
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.pace import Pace
from ldm.commands.answers import answer_errors
from ldm.config import build
from ldm.loggers.background import end_all
from ldm.loggers.metrics_log import MetricsLog
from ldm.loggers.tensorboard_log import tensorboard_logger
from ldm.loggers.wandb_log import wandb_logger
from ldm.planning.fitting import make_trainer

WARM = 10  # steps that are not counted
LIMIT = 0.01
DEFAULT = 10  # trainer.log_every_n_steps
SERVICES: Mapping[str, Behaviour | None] = {
    "none": None,
    "answers": answers,
    "black_hole": black_hole,
    "drips": drips,
    "errs": errs,
}


class Timed(Logger):
    """A logger whose methods are timed."""

    def __init__(self, inner: Logger) -> None:
        super().__init__()
        self.inner, self.seconds = inner, 0.0

    name = version = ""  # type: ignore[assignment]

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Logged by none."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        began = time.perf_counter()
        self.inner.log_metrics(dict(metrics), step)
        self.seconds += time.perf_counter() - began


class Alternating(Callback):
    """Takes the loggers away for every second step.

    Attributes:
        seconds: of the steps with loggers and of those without, from one step's start to the next one's.
    """

    def __init__(self, loggers: list[Timed]) -> None:
        self.loggers = loggers
        self.seconds: dict[bool, list[float]] = {True: [], False: []}
        self._began: float | None = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self._began is not None and batch_idx > WARM:
            self.seconds[bool(trainer.loggers)].append(now - self._began)
        if batch_idx == WARM:
            for logger in self.loggers:
                logger.seconds = 0.0
        trainer.loggers = self.loggers if batch_idx % 2 == 0 else []
        self._began = now


def measure(config: DictConfig, steps: int, folder: Path) -> tuple[float, float]:
    """The ratio, and the share of a logged step that is spent inside the loggers' methods."""
    torch.manual_seed(0)
    stage = build(config.model.stage)
    asides: list[Logger] = [
        wandb_logger(project="ldm", name="cost", folder=str(folder)),
        tensorboard_logger(folder=str(folder)),
    ]
    loggers = [Timed(logger) for logger in (MetricsLog(folder / "metrics.jsonl"), *asides)]
    watching = Alternating(loggers)
    trainer = make_trainer(
        config,
        callbacks=[watching, Gradients(clip=1.0), Pace()],
        loggers=loggers,
        folder=folder,
        max_steps=steps,
        val_check_interval=steps,
        limit_val_batches=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
    )
    batch = stage.example_batch(config.batch_size, size=config.data.size)
    trainer.fit(stage, DataLoader([batch] * steps, batch_size=None))
    end_all(asides, folder)
    logged, bare = watching.seconds[True], watching.seconds[False]
    inside = sum(logger.seconds for logger in loggers) / len(logged)
    print(f"a step takes {1000 * median(bare):.1f} ms, the loggers' methods {1e6 * inside:.0f} us of one")
    return median(a / b for a, b in zip(logged, bare, strict=False)), inside / median(bare)


def main(steps: int, service: str, overrides: list[str]) -> None:
    """Measures and prints; exits with 1 where the bound is passed."""
    config = training_config(overrides)
    behaviour = SERVICES[service]
    opened: Callable[[], Any] = nullcontext if behaviour is None else lambda: Service(behaviour)
    with tempfile.TemporaryDirectory(prefix="ldm-") as folder, opened() as there:
        os.environ["WANDB_DATA_DIR"] = os.environ["XDG_STATE_HOME"] = folder
        os.environ["WANDB_MODE"] = "offline" if there is None else "online"
        if there is not None:
            os.environ |= {"WANDB_BASE_URL": there.url, "WANDB_API_KEY": KEY}
        ratio, share = measure(config, steps, Path(folder))
    print(f"ratio {ratio:.4f}, in calls {share:.3%}, default {share / DEFAULT:.3%}")
    sys.exit(int(share / DEFAULT > LIMIT))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--service", choices=tuple(SERVICES), default="none")
    add_trained_shape(parser)
    given, rest = parser.parse_known_args()
    answer_errors(lambda: main(given.steps, given.service, trained(given.shape, rest)))
