"""Logging in the background: on a thread of its own, so that no service and no disk can hold a step up."""

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Full, Queue
from typing import Protocol

from PIL.Image import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ldm import UserError
from ldm.distributed.ranks import is_first
from ldm.loggers.metrics_log import RunLogger

ROOM = 10_000  # entries that may wait to be written

Cell = str | Image  # of a table


class Recorder(Protocol):
    """A place that keeps what a training logs. Only one thread asks it."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name, of one step."""

    def image(self, name: str, path: Path, step: int) -> None:
        """A picture file."""

    def table(
        self, name: str, header: Sequence[str], rows: Sequence[Sequence[Cell]], step: int | None
    ) -> None:
        """A table, whose cells may be pictures."""

    def bundle(self, path: Path) -> None:
        """The folder that the training has left."""

    def close(self, *, failed: bool) -> None:
        """The end: nothing comes after it."""


def check_patience(patience: float) -> None:
    """Raises UserError where a logger's patience is no finite number of seconds, at least 1."""
    if not 1 <= patience < math.inf:
        raise UserError(f"logger.{patience=} must be a finite number of seconds, at least 1")


class BackgroundLogger(RunLogger):
    """Hands what is logged to a recorder, without waiting for it.

    The recorder is opened on the thread that feeds it. Where it fails it is given up with a sentence, where
    it is too slow entries are dropped and counted: the training goes on, and `metrics.jsonl` has all.

    Args:
        open_recorder: makes the recorder, on the first rank alone.
        title: what it is called in sentences.
        patience: seconds that the end waits for what is still to be written.
        give_up: ends what the recorder has started and can't end itself, once it has failed or hangs.
    """

    def __init__(
        self,
        open_recorder: Callable[[], Recorder],
        *,
        title: str,
        patience: float,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(title)
        self.title, self.patience = title, patience
        self.error: Exception | None = None
        self.dropped = 0
        self._open, self._give_up = open_recorder, give_up
        self._entries: Queue[Callable[[Recorder], None] | None] = Queue(ROOM)
        self._failed = self._ended = False
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)
        if is_first():
            self._thread.start()

    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        self._later(lambda recorder: recorder.metrics(values, step or 0))

    @rank_zero_only
    def log_image(self, name: str, path: Path, step: int) -> None:
        self._later(lambda recorder: recorder.image(name, path, step))

    @rank_zero_only
    def log_table(
        self,
        name: str,
        *,
        header: Sequence[str],
        rows: Sequence[Sequence[Cell]],
        step: int | None = None,
    ) -> None:
        self._later(lambda recorder: recorder.table(name, header, rows, step))

    @rank_zero_only
    def log_bundle(self, path: Path) -> None:
        self._later(lambda recorder: recorder.bundle(path))

    def finalize(self, status: str) -> None:
        """Ends the record of a training that failed; after one that did not, its bundle is still to come."""
        if status == "failed":
            self.end(failed=True)

    @rank_zero_only
    def end(self, *, failed: bool = False) -> None:
        """Waits at most `patience` seconds until all is written, and tells what is not."""
        if self._ended:
            return
        self._failed, self._ended = failed, True
        deadline = time.monotonic() + self.patience
        with suppress(Full):
            self._entries.put(None, timeout=self.patience)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.error = TimeoutError(f"{self.title} hangs")
            say(f"{self.title} has not ended after {self.patience:g} s and is given up")
            self._give_up()
        if self.dropped:
            say(f"{self.title} was too slow for {self.dropped} entries; metrics.jsonl has them")

    def _later(self, entry: Callable[[Recorder], None]) -> None:
        if self.error is not None or self._ended:
            return
        try:
            self._entries.put_nowait(entry)
        except Full:
            self.dropped += 1

    def _work(self) -> None:
        try:
            recorder = self._open()
            while (entry := self._entries.get()) is not None:
                entry(recorder)
            recorder.close(failed=self._failed)
        except Exception as error:  # whatever it is, a training of days is worth more than its curves
            if self.error is None:  # else it was given up already
                self.error = error
                cause = f"{type(error).__name__}: {error}"
                say(f"{self.title} has failed ({cause}); metrics.jsonl has all that is logged")
                self._give_up()


def end_all(loggers: Sequence[Logger], bundle: Path) -> None:
    """Gives the bundle of a training that has ended to all background loggers, and ends them."""
    for logger in background_loggers(loggers):
        logger.log_bundle(bundle)
        logger.end()


def say(line: str) -> None:
    """Prints a line above the progress bar."""
    tqdm.write(line)
    sys.stdout.flush()


def background_loggers(loggers: Sequence[Logger]) -> list[BackgroundLogger]:
    """Those of some loggers that work in the background: they take pictures and tables."""
    return [logger for logger in loggers if isinstance(logger, BackgroundLogger)]


def log_table(
    loggers: Sequence[Logger],
    *,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    step: int | None = None,
) -> int:
    """Logs one table to every logger that takes tables; returns how many did.

    Args:
        name: its key there.
        rows: cells are text or pictures, so a column has one type whatever is empty in it.
        step: at which it was made, if it belongs to a training.
    """
    takers = background_loggers(loggers)
    for logger in takers:
        logger.log_table(name, header=list(header), rows=[list(row) for row in rows], step=step)
    return len(takers)
