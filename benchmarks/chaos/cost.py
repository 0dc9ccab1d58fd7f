"""What saving costs: the share of a training's time at the interval that conf/ ships."""

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.chaos.verdict import Loss
from benchmarks.chaos.world import train, write_pictures
from benchmarks.configs import training_config
from benchmarks.harness import Fault
from ldm.callbacks.saving import SaveStates

LIMIT = 0.02  # of the time of the steps between two states
STEPS_A_SAVE = 4  # in this measurement


class Clock(Callback):
    """Seconds of each step, and of each save: what passes in `SaveStates` where one is due."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.saves: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        (saving,) = (callback for callback in trainer.callbacks if isinstance(callback, SaveStates))
        save = saving._save

        def timed(*arguments: Any) -> None:
            began = perf_counter()
            save(*arguments)
            self.saves.append(perf_counter() - began)

        saving._save = timed  # type: ignore[method-assign]

    def on_train_batch_start(self, *_: Any) -> None:
        self.began, self.saved = perf_counter(), len(self.saves)

    def on_train_batch_end(self, *_: Any) -> None:
        if len(self.saves) == self.saved:
            self.steps.append(perf_counter() - self.began)


def overhead(folder: Path, tries: int) -> Loss:
    """The default training, with a batch of 20: saves are timed against steps, at the medians."""
    pictures, clock = write_pictures(folder / "pictures"), Clock()
    overrides = (
        f"data.root={pictures}",
        f"run_dir={folder / 'run'}",
        f"steps={STEPS_A_SAVE * tries}",
        "batch_size=20",
        "trainer.val_check_interval=1000000",
    )
    config = training_config(overrides)
    every = config.callbacks.saving.every
    config.callbacks.saving.every = STEPS_A_SAVE
    train(config, clock)
    step, save = median(clock.steps), median(clock.saves)
    share = save / (every * step)
    size = sum(path.stat().st_size for path in (folder / "run").rglob("state.ckpt")) / 2e6
    says = f"{100 * share:.2f} %: {save:.2f} s for {size:.0f} MB every {every} steps of {step:.2f} s"
    failures = [f"more than {100 * LIMIT:g} %: {says}"] * (share > LIMIT)
    return Loss(tries=len(clock.saves), failures=failures, says=says)


FAULTS = [Fault(area="cost", name="of saving, as a share of the steps", tries=(5, 2), run=overhead)]
