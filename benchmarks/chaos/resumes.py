"""A training that is ended at a moment and resumed, against the one that was never ended: to the bit."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.verdict import Loss, verdict_of
from benchmarks.chaos.world import EVERY, STEPS, config, train, write_pictures
from benchmarks.harness import Fault
from ldm.checkpoints.training_state import newest_state, step_of

VALIDATIONS = range(8, STEPS + 1, 8)
NO_VALIDATION = "trainer.val_check_interval=1000000"
ACCUMULATED = ("trainer.accumulate_grad_batches=2", NO_VALIDATION)
TWO_LOADERS = ("data.num_workers=2",)
Attempt = tuple[list[str], int]  # what was wrong, and the steps that were taken again


class EndedError(Exception):
    """What stands for a lost process."""


class AtBatch(Callback):
    """Ends the training when a batch begins; an accumulated step has several."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch:
            raise EndedError


class InValidation(Callback):
    """Ends the training inside the validation after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise EndedError


class InSampling(Callback):
    """Ends the training while pictures are drawn after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.step:
            pl_module.averaged.register_forward_hook(self._end)

    def _end(self, *_: Any) -> None:
        raise EndedError


class Seen(Callback):
    """The positions of all samples that were trained on."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.positions += batch["position"].tolist()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One way of interrupting trainings.

    Attributes:
        name: what it is called in the table.
        ends: the moments of each try, one after the other.
        overrides: of the config, also of the training that is never ended.
        before, after: further overrides, until the first end and from then on.
        equal: whether the two must be equal; the negative controls must not.
        counts: ranks before and after; if they differ, weights need only be equal but for rounding.
        may_lose: steps that may be lost: none where the ranks are asked to stop.
    """

    name: str
    ends: Sequence[Sequence[Callback]]
    overrides: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    equal: bool = True
    counts: tuple[int, int] = (1, 1)
    may_lose: int = EVERY


@cache
def uninterrupted(root: Path, overrides: tuple[str, ...]) -> tuple[dict[str, Any], list[int]]:
    """Last state and positions of the training that is never ended."""
    seen = Seen()
    run = root / "whole"
    state = train(config(pictures_of(root), run, *overrides), seen)
    shutil.rmtree(run)
    return compared(state), seen.positions


@cache
def pictures_of(root: Path) -> Path:
    return write_pictures(root / "pictures")


def interrupted(cell: Cell, root: Path, ends: Sequence[Callback]) -> Attempt:
    """What is wrong with a training that was ended and resumed, and the most steps it took again."""
    whole, positions = uninterrupted(root, cell.overrides)
    run, lost, wrongs = root / "ended", 0, []
    for number, end in enumerate((*ends, None)):
        seen, start = Seen(), steps_saved(run)
        own = config(pictures_of(root), run, *cell.overrides, *(cell.after if number else cell.before))
        try:
            state = train(own, seen, *([end] if end else []))
        except EndedError:
            taken = len(seen.positions) // (own.batch_size * own.trainer.accumulate_grad_batches)
            lost = max(lost, start + taken - steps_saved(run))
            continue
        wrongs += ["it was not ended"] * (end is not None)
    different = differences(whole, compared(state))
    if cell.equal:
        wrongs += [f"differs: {', '.join(different[:3])}"] * bool(different)
        wrongs += ["other samples"] * (seen.positions != positions[len(positions) - len(seen.positions) :])
    else:
        wrongs += ["the control is equal"] * (not different)
    shutil.rmtree(run)
    return wrongs, lost


def steps_saved(run: Path) -> int:
    """The step that a run will go on from."""
    found = newest_state(run / "checkpoints")
    return step_of(found.parent) if found else 0


def faults_of(
    cells: Sequence[Cell], attempt: Callable[[Cell, Path, Sequence[Callback]], Attempt]
) -> list[Fault]:
    """A fault for each cell: all its tries, or some of them spread over all.

    Args:
        attempt: interrupts a training in a folder; returns what was wrong and the steps that it took again.
    """

    def run(cell: Cell, folder: Path, tries: int) -> Loss:
        return verdict_of(cell.ends, partial(attempt, cell, folder), tries=tries, interval=cell.may_lose)

    return [Fault(area="resumes", name=cell.name, tries=(10**6, 1), run=partial(run, cell)) for cell in cells]


def each(make: Callable[[int], Callback], moments: Sequence[int]) -> list[list[Callback]]:
    """A try for each moment."""
    return [[make(moment)] for moment in moments]


THRICE = [[AtBatch(first + n) for n in (1, 2, 4, 5)] for first in range(0, STEPS - 5, 5)]
CELLS = [
    Cell(name="at every step", ends=each(AtBatch, range(STEPS))),
    Cell(
        name="at every step, two loader processes",
        ends=each(AtBatch, range(STEPS)),
        before=TWO_LOADERS,
        after=TWO_LOADERS,
    ),
    Cell(name="in every accumulation", ends=each(AtBatch, range(1, 2 * STEPS, 2)), overrides=ACCUMULATED),
    Cell(name="in a validation", ends=each(InValidation, VALIDATIONS)),
    Cell(name="while drawing", ends=each(InSampling, VALIDATIONS)),
    Cell(name="thrice in an epoch, and at its end", ends=THRICE),
    Cell(name="no loader process, then two", ends=each(AtBatch, range(2, STEPS, 7)), after=TWO_LOADERS),
    Cell(name="two loader processes, then none", ends=each(AtBatch, range(2, STEPS, 7)), before=TWO_LOADERS),
    Cell(
        name="control: another seed after it",
        ends=each(AtBatch, range(5, STEPS, 9)),
        after=("seed=1",),
        equal=False,
    ),
    Cell(
        name="control: another order after it",
        ends=each(AtBatch, range(5, STEPS, 9)),
        after=("data.seed=1",),
        equal=False,
    ),
]
FAULTS = faults_of(CELLS, interrupted)
