"""What becomes of a training of two ranks when one of them fails, dies or stops while samples are measured.

    python -m benchmarks.metric_faults [--patience 20] [--only "rank 1 killed" ...]

Each fault meets a training of its own: ldm.train with trainer=cpu_ddp on 24 emoji, measuring with a network
that does what the fault says. Prints how long it went on, its exit status and the cause that it named. It
fails here if it continues for more than 60 s after the fault, or ends otherwise than it should: a failure of
the measures leaves the training alone, a rank that is lost ends it with a cause. Linux.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

import ldm.config
from benchmarks.chaos.world import SMALL, write_pictures
from benchmarks.harness import Fault, table
from benchmarks.processes import Ending
from ldm.distributed.launch import launch
from ldm.distributed.ranks import rank
from ldm.metrics.features import Pixels

LIMIT = 60.0  # seconds from a fault to the end
MOMENT = "LDM_FAULT_MOMENT"  # variable: a file that is made when the fault comes
SIZE = 64  # pixels a side of the emoji
TRAINING = (*SMALL, "steps=16", "trainer=cpu_ddp", "batch_size=2")


def fails(error: type[Exception]) -> Callable[[], None]:
    def act() -> None:
        raise error("made by benchmarks.metric_faults")

    return act


def waits() -> None:
    time.sleep(600)


ACTS: dict[str, Callable[[], None]] = {
    "none": lambda: None,
    "failure": fails(RuntimeError),
    "memory": fails(torch.OutOfMemoryError),
    "death": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "wait": waits,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
}


class ActingPixels(Pixels):
    """Features that are the pixels themselves; the second rank acts when it first looks at pictures.

    Args:
        act: a name of `ACTS`.
    """

    def __init__(self, *, act: str) -> None:
        super().__init__(size=SIZE)
        self.act, self.due = ACTS[act], True

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        if self.due:
            self.due = False
            moment()
            if rank() == 1:
                self.act()
        return super().__call__(images)


class StopsAlone(Callback):
    """The second rank takes no further step after a validation, as if it alone had decided to stop."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if rank() == 1:
            moment()
            trainer.should_stop = True


@dataclass(frozen=True, kw_only=True)
class Case:
    """What happens, and what should come of it.

    Attributes:
        act: of the second rank, a name of `ACTS`.
        captions: how many pictures are sampled, four at a time.
        ends: words of the cause; empty if the training continues to its last step.
        stops: whether the second rank stops by itself.
    """

    act: str = "none"
    captions: int = 12
    ends: str = ""
    stops: bool = False


CASES = {
    "uneven shares": Case(),
    "a rank without a share": Case(captions=4),
    "rank 1 fails": Case(act="failure"),
    "rank 1 is out of memory": Case(act="memory"),
    "rank 1 killed": Case(act="death", ends="rank 1"),
    "rank 1 hangs": Case(act="wait", ends="rank 1"),
    "rank 1 stopped": Case(act="stop", ends="rank 1"),
    "rank 1 ends its training": Case(stops=True, ends="rank 1"),
}


def moment() -> None:
    """Notes when the fault came, or when the measures began where there is none."""
    Path(os.environ[MOMENT]).touch()


def overrides(case: Case) -> list[str]:
    """Of ldm.train: the measures, with the fault in them."""
    ours = "benchmarks.metric_faults"
    metrics = "{nearest: {_target_: ldm.metrics.retrieval.PictureRecall, features: pixels, ks: [1, 5]}}"
    extractors = f"{{pixels: {{_target_: {ours}.ActingPixels, act: {case.act}}}}}"
    measures = (
        "+callbacks.generation={_target_: ldm.callbacks.generation_metrics.GenerationMetrics, "
        f"captions: {case.captions}, batch_size: 4, extractors: {extractors}, metrics: {metrics}}}"
    )
    stops = [f"+callbacks.stops={{_target_: {ours}.StopsAlone}}"]
    return [*TRAINING, measures, *stops * case.stops]


def meet(case: Case, folder: Path, _tries: int, *, patience: float) -> Ending:
    """A training that meets a fault."""
    pictures, runs = write_pictures(folder / "pictures"), folder / "runs"
    os.environ[MOMENT] = str(folder / "moment")
    command = [sys.executable, "-m", "benchmarks.metric_faults", "--rank", *overrides(case)]
    began = time.time()
    status, cause = launch([*command, f"data.root={pictures}", f"runs={runs}"], 2, patience=patience)
    came = Path(os.environ[MOMENT])
    seconds = time.time() - (came.stat().st_mtime if came.exists() else began)
    bundle = any(runs.glob("*/*/bundle/config.yaml"))
    good = bool(status) and case.ends in cause if case.ends else not status and bundle
    failures = ["it should have ended otherwise"] * (not good) + ["it continues"] * (seconds >= LIMIT)
    return Ending(seconds=seconds, status=status, failures=failures, says=cause)


def main() -> None:
    """Prints the table; exit status 1 if a training failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patience", type=float, default=20.0, help="of the training, in seconds")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options, arguments = parser.parse_known_args()
    if options.rank:
        return be_rank(arguments)
    faults = [
        Fault(name=name, run=partial(meet, CASES[name], patience=options.patience)) for name in options.only
    ]
    found = table(faults, {"seconds": "seconds", "status": "status"})
    failures = sum(not verdict.passed for _, verdict in found)
    print(f"{len(faults)} faults, {failures} failures, patience {options.patience:g} s")
    sys.exit(bool(failures))


def be_rank(arguments: list[str]) -> None:
    """ldm.train as one of the ranks; objects of this module may be built."""
    from ldm.train import main as train

    ldm.config.TARGETS += ("benchmarks.",)
    sys.argv = ["ldm.train", *arguments]
    train()


if __name__ == "__main__":
    main()
