"""Logging in the background: on a thread of its own, so that no service and no disk can delay a step."""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from operator import methodcaller
from pathlib import Path
from queue import Full, Queue
from typing import Any, Literal, Protocol

from PIL.Image import Image
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tqdm import tqdm

from ldm import UserError
from ldm.distributed.ranks import is_first
from ldm.loggers.metrics_log import RunLogger

ROOM = 10_000  # entries that may wait to be written

Rows = Sequence[Sequence[str | Image]]  # of a table


class Recorder(Protocol):
    """Keeps what a training logs. All its methods are called on one thread."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Records the numbers of a step by name."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Records a picture file."""

    def table(self, name: str, header: Sequence[str], rows: Rows, step: int | None) -> None:
        """Records a table; the cells of a column are all text or all pictures."""

    def bundle(self, path: Path) -> None:
        """Records the trained bundle."""

    def close(self, *, failed: bool) -> None:
        """Finishes the record; no other method is called after it."""


def check_patience(patience: float) -> None:
    """Raises UserError if a logger's patience is not a finite number of seconds, at least 1."""
    if not 1 <= patience < math.inf:
        raise UserError(f"logger.{patience=} must be a finite number of seconds, at least 1")


class BackgroundLogger(RunLogger):
    """Hands what is logged to a recorder, without waiting for it.

    A recorder that fails is abandoned with one sentence. If it is too slow, entries are dropped and counted.
    The training continues in both cases, and `metrics.jsonl` has every number.

    Args:
        open_recorder: makes the recorder; called on the background thread of the first rank.
        title: what messages call it.
        patience: seconds that the end waits for entries that are still to be written.
        give_up: ends processes that the recorder has started, once it has failed or hangs.
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
        self.patience = patience
        self.error: Exception | None = None
        self.dropped = 0
        self._open, self._give_up = open_recorder, give_up
        self._entries: Queue[Callable[[Recorder], None] | None] = Queue(ROOM)
        self._failed = self._ended = False
        self._thread = threading.Thread(target=self._work, name=title, daemon=True)
        if is_first():
            self._thread.start()

    def log_values(self, values: Mapping[str, float], step: int | None) -> None:
        """Has the numbers of a step recorded, some time later."""
        self.record("metrics", values, step or 0)

    @rank_zero_only
    def record(self, kind: Literal["metrics", "image", "table", "bundle"], *arguments: Any) -> None:
        """Has the recorder's method of that name called, some time later."""
        if self.error is not None or self._ended:
            return
        try:
            self._entries.put_nowait(methodcaller(kind, *arguments))
        except Full:
            self.dropped += 1

    def finalize(self, status: str) -> None:
        """Ends the record of a failed training; after a successful one its bundle is still to come."""
        if status == "failed":
            self.end(failed=True)

    @rank_zero_only
    def end(self, *, failed: bool = False) -> None:
        """Waits at most `patience` seconds until all is written, and prints what was lost."""
        if self._ended:
            return
        self._failed, self._ended = failed, True
        deadline = time.monotonic() + self.patience
        with suppress(Full):
            self._entries.put(None, timeout=self.patience)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self.error = TimeoutError(f"{self.name} hangs")
            say(f"{self.name} has not finished within {self.patience:g} s and is abandoned")
            self._give_up()
        if self.dropped:
            say(f"{self.name} was too slow for {self.dropped} entries; metrics.jsonl has them")

    def _work(self) -> None:
        try:
            recorder = self._open()
            while (entry := self._entries.get()) is not None:
                entry(recorder)
            recorder.close(failed=self._failed)
        except Exception as error:  # whatever it is, a training of days is worth more than its curves
            if self.error is None:  # else `end` has given it up already
                self.error, cause = error, f"{type(error).__name__}: {error}"
                say(f"{self.name} has failed ({cause}); metrics.jsonl has everything that is logged")
                self._give_up()


def background_loggers(loggers: Iterable[Logger]) -> list[BackgroundLogger]:
    """The background loggers among some loggers: they take pictures, tables and bundles besides numbers."""
    return [logger for logger in loggers if isinstance(logger, BackgroundLogger)]


def end_all(loggers: Iterable[Logger], bundle: Path) -> None:
    """Records the bundle of a training that has ended, and ends all background loggers."""
    for logger in background_loggers(loggers):
        logger.record("bundle", bundle)
        logger.end()


def say(line: str) -> None:
    """Prints a line on the first rank, above the progress bar and at once."""
    if is_first():
        tqdm.write(line)
        print(end="", flush=True)
