"""Short trainings of emoji, each measured on few pictures; what is there already is not trained again."""

import io
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from benchmarks.configs import training_config
from experiments.sides import LOG, validation_of
from ldm.callbacks.ema import EMA
from ldm.config import CONF, build, build_data, every, plain
from ldm.evaluation.command import Command
from ldm.evaluation.feature_pass import Ranks
from ldm.evaluation.results import FILE_NAME, read_results
from ldm.io.writing import write
from ldm.loggers.metrics_log import MetricsLog
from ldm.planning.checks import validation_options
from ldm.planning.fitting import make_trainer
from ldm.randomness.seeds import key_of

STEPS, RATE = 40, 4e-3
NARROW = (  # a denoiser of half a million parameters
    "+experiment=emoji", "backbone.channels=32", "backbone.norm_groups=4", "batch_size=16",
    "trainer.precision=32", f"steps={STEPS}", f"trainer.val_check_interval={STEPS}",
    "model.stage.decay.warmup=10",
)  # fmt: skip
SETS = (
    "[{name:train,split:train,captions:16,metrics:[kernel,nearest,clip_score]},"
    "{name:heldout,split:val,captions:16,metrics:[kernel,nearest,clip_score]}]"
)
MEASURED = (
    "protocol=quick",
    f"protocol.sets={SETS}",
    "protocol.seeds=3",
    "protocol.held_out=null",
    "steps=4",
)


@dataclass(frozen=True, kw_only=True)
class Training:
    """One of the trainings: its recipe's name, its seed, and what it changes."""

    recipe: str
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.recipe}_{self.seed}"


def trainings(count: int, *, slow: int) -> list[Training]:
    """The same recipe twice, with another order of its data, and once with a tenth of its learning rate.

    Args:
        count: seeds of the recipe, and of the other order.
        slow: seeds with the low learning rate.
    """
    found = []
    for seed in range(count):
        found.append(Training(recipe="base", seed=seed))
        found.append(Training(recipe="order", seed=seed, changes=(f"data.seed={1000 + seed}",)))
        if seed < slow:
            found.append(Training(recipe="slow", seed=seed, changes=(f"optimizer.lr={RATE / 10}",)))
    return found


def results_of(wanted: list[Training], folder: Path, *, data: str) -> Iterator[dict[str, Any]]:
    """The results document of each training, in order; those that are missing are made."""
    for number, each in enumerate(wanted):
        place = folder / each.name
        if not (place / FILE_NAME).is_file():
            print(f"{number + 1} of {len(wanted)}: {each.name}", flush=True)
            if not (place / "bundle" / "config.yaml").is_file():
                train(each, place, data=data)
            measure(place, data=data)
        document = read_results(place / FILE_NAME)
        yield document | {"rows": [*document["rows"], *validation_of(place / LOG)["rows"]]}


def train(training: Training, folder: Path, *, data: str) -> None:
    """Trains in this process, which starts once for all; leaves the run's log, config and bundle."""
    config = training_config(
        [*NARROW, f"optimizer.lr={RATE}", *training.changes, f"seed={training.seed}", f"data.root={data}",
         f"name={training.recipe}"]
    )  # fmt: skip
    torch.manual_seed(key_of(config.seed, "weights"))
    stage = build(config.model.stage)
    source = build_data(config, stage)
    log = folder / LOG
    log.unlink(missing_ok=True)  # of a training that was interrupted
    identity = plain(config)
    write(folder / "config.yaml", yaml.safe_dump(identity, sort_keys=False))
    trainer = make_trainer(
        config,
        callbacks=[EMA(decay=0.9)],
        loggers=[MetricsLog(log)],
        enable_progress_bar=False,
        **validation_options(source),
    )
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        trainer.fit(stage, datamodule=source)
    stage.write_bundle(folder / "bundle", config=identity, data=source)


def measure(folder: Path, *, data: str) -> None:
    """Measures the bundle in a folder; the results lie beside it."""
    shutil.rmtree(folder / "out", ignore_errors=True)  # of an evaluation that was interrupted
    config = evaluation_config(f"bundle={folder / 'bundle'}", f"data.root={data}", f"out={folder / 'out'}")
    options = plain(config)
    named = {name for each in options["protocol"]["sets"] for name in each["metrics"]}
    options["metric"] = {name: node for name, node in options["metric"].items() if name in named}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        Command(options=options, build=build, device=torch.device("cpu"), ranks=Ranks()).measure()
    (folder / "out" / FILE_NAME).rename(folder / FILE_NAME)


def evaluation_config(*overrides: str) -> DictConfig:
    """The config of an evaluation under this benchmark's protocol."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("evaluate", overrides=[*every("evaluate"), *MEASURED, *overrides])
