"""Trainings of two processes (gloo) that are ended and resumed, also with another number of them."""

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.chaos import saver
from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import (
    ACCUMULATED,
    THRICE,
    TWO_LOADERS,
    VALIDATIONS,
    AtBatch,
    Attempt,
    Cell,
    EndedError,
    InSampling,
    InValidation,
    Seen,
    each,
    faults_of,
    pictures_of,
    steps_saved,
)
from benchmarks.chaos.world import BATCH, STEPS, config, last_state, train
from ldm.callbacks.saving import StoppedBySignal

ENDED, STOPPED = 3, 4  # exit statuses: of a lost process, and of one that was asked to stop
LIMIT = 120  # seconds after which a rank that hangs is ended
ROUNDING = STEPS * torch.finfo(torch.float32).eps  # one a step, of weights that are below 1
SGD = (
    "optimizer._target_=torch.optim.SGD",
    "~optimizer.betas",
    "~optimizer.fused",
)  # doesn't divide by noise


class Signalled(Callback):
    """Sends SIGTERM to the last rank alone when a batch begins."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.batch and trainer.global_rank == trainer.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def together(
    root: Path, run: Path, count: int, end: Callback | None, *overrides: str
) -> tuple[set[int], list[int]]:
    """Trains with `count` ranks; returns how they ended and the positions in their order."""
    options = (f"trainer={'cpu_ddp' if count > 1 else 'cpu'}", f"batch_size={BATCH // count}", *overrides)
    port = _free_port()
    pids = []
    for rank in range(count):
        own = partial(_rank, config(pictures_of(root), run, *options), end, run.with_suffix(f".{rank}"))
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        pids.append(saver.child(partial(_with_variables, variables, own)))
    statuses = {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}
    seen = [json.loads(run.with_suffix(f".{rank}").read_text()) for rank in range(count)]
    return statuses, list(chain.from_iterable(zip(*seen, strict=True)))


def _with_variables(variables: dict[str, int], action: Callable[[], None]) -> None:
    os.environ |= {name: str(value) for name, value in variables.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": str(variables["WORLD_SIZE"]),
        "TORCHELASTIC_RUN_ID": "chaos",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    signal.alarm(LIMIT)
    action()


def _rank(own: Any, end: Callback | None, positions: Path) -> None:
    """One rank; its exit status says how it ended."""
    seen, status = Seen(), 0
    try:
        train(own, seen, *([end] if end else []))
    except EndedError:
        status = ENDED
    except StoppedBySignal:
        status = STOPPED
    positions.write_text(json.dumps(seen.positions))
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@cache
def uninterrupted(root: Path, count: int, *overrides: str) -> tuple[dict[str, Any], list[int]]:
    """Last state and positions of the training that is never ended."""
    run = root / f"whole{count}"
    statuses, positions = together(root, run, count, None, *overrides)
    assert statuses == {0}, f"the training in peace ended with {statuses}"
    return compared(last_state(run / "checkpoints")), positions


def interrupted(cell: Cell, root: Path, ends: Sequence[Callback]) -> Attempt:
    """What is wrong with a training that was ended and resumed, and the most steps it took again."""
    before, after = cell.counts
    expected = ENDED if cell.may_lose else STOPPED
    whole, order = uninterrupted(root, before, *cell.overrides)
    run, lost, wrongs = root / "ended", 0, []
    for end in ends:
        start = steps_saved(run)
        statuses, seen = together(root, run, before, end, *cell.overrides, *cell.before)
        wrongs += [f"ended with {statuses}"] * (statuses != {expected})
        taken = len(seen) * STEPS // len(order)
        lost = max(lost, start + taken - steps_saved(run))
    statuses, seen = together(root, run, after, None, *cell.overrides, *cell.after)
    wrongs += [f"resumed, ended with {statuses}"] * (statuses != {0})
    wrongs += ["other samples"] * (seen != order[len(order) - len(seen) :])
    state = compared(last_state(run / "checkpoints"))
    wrongs += differences(whole, state)[:3] if before == after else rounding(whole, state)
    shutil.rmtree(run)
    return wrongs, lost


def rounding(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs by more than rounding: weights, and anything else of the schedule and the stream."""
    exact = ("lr_schedulers", "global_step", "stream")
    wrongs = differences(*({name: state[name] for name in exact} for state in (ours, theirs)))
    mine, others = ours["state_dict"], theirs["state_dict"]
    gap = max(float(_gap(value, others[name])) for name, value in mine.items())
    return wrongs + [f"weights differ by {gap:.1e}"] * (gap > ROUNDING)


def _gap(mine: Tensor, other: Tensor) -> Tensor:
    return (mine - other).abs().max()


def cell(name: str, ends: Sequence[Sequence[Callback]], **options: Any) -> Cell:
    """A cell of two ranks, unless the options say otherwise."""
    return Cell(name=name, ends=ends, **{"counts": (2, 2)} | options)


CELLS = [
    cell("two ranks, at every step", each(AtBatch, range(STEPS))),
    cell(
        "two ranks, at every step, two loader processes each",
        each(AtBatch, range(STEPS)),
        before=TWO_LOADERS,
        after=TWO_LOADERS,
    ),
    cell("two ranks, in every accumulation", each(AtBatch, range(1, 2 * STEPS, 2)), overrides=ACCUMULATED),
    cell("two ranks, in a validation", each(InValidation, VALIDATIONS)),
    cell("two ranks, while drawing", each(InSampling, VALIDATIONS)),
    cell("two ranks, thrice in an epoch, and at its end", THRICE),
    cell("two ranks, SIGTERM to one", each(Signalled, range(3, STEPS, 9)), may_lose=0),
    cell("two ranks, then one", each(AtBatch, range(5, STEPS, 9)), counts=(2, 1), overrides=SGD),
    cell("one rank, then two", each(AtBatch, range(5, STEPS, 9)), counts=(1, 2), overrides=SGD),
]
FAULTS = faults_of(CELLS, interrupted)
