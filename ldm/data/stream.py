"""The endless stream of training samples, and a loader that can start anywhere in it.

Position p of the stream is sample `order(seed, p // n)[p % n]`, by default a permutation for each epoch.
Batches are consecutive positions across the ends of epochs: none is ever short, every rank has the same
number of them, and one integer says where a run is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from threading import Timer
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from pytorch_lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ldm import UserError
from ldm.data import DataError
from ldm.randomness import keyed
from ldm.randomness.seeds import check_seed

Order = Callable[[int, int, int], np.ndarray]  # seed, epoch, positions an epoch -> the sample at each


class PictureBatch(TypedDict):
    """Pictures, each with one of its captions."""

    image: Tensor  # uint8, b 3 h w
    captions: list[str]  # b, one chosen per picture
    position: Tensor  # int64, b: place in the stream of samples, the key of every random choice
    index: Tensor  # int64, b: the picture's number in its split


class LatentBatch(TypedDict):
    """Posterior moments of pictures, in the codec's scaled units, with the context of one caption each."""

    mean: Tensor  # float32, b c h w
    std: Tensor  # float32, b c h w
    context: Tensor  # float32, b n d
    embedding: NotRequired[Tensor]  # float32, b c h w: features of the pictures, where an embedder makes them
    position: Tensor  # int64, b
    index: Tensor  # int64, b


@dataclass(eq=False)
class StreamDataset(Dataset[Any]):
    """`make(number, position)` at each position: the sample with the number that the order has there."""

    make: Callable[[int, int], Any]
    size: int  # positions an epoch
    seed: int  # key of the order
    order: Order = keyed.permutation
    _orders: dict[int, np.ndarray] = field(default_factory=dict, init=False)  # by epoch

    def number(self, position: int) -> int:
        """Which sample stands at a position."""
        epoch, place = divmod(position, self.size)
        if epoch not in self._orders:  # a batch may lie in two epochs: the one before is kept
            before = {each: order for each, order in self._orders.items() if each == epoch - 1}
            self._orders = before | {epoch: self.order(self.seed, epoch, self.size)}
        return int(self._orders[epoch][place])

    def __getitem__(self, position: int) -> Any:
        return self.make(self.number(position), position)


@dataclass(kw_only=True, eq=False)
class Positions(Sampler[list[int]]):
    """Batches of positions for one rank: global batch k starts at k * batch * world, and ranks take turns."""

    batch_size: int
    num_batches: int
    rank: int = 0
    world_size: int = 1
    start: int = 0  # positions consumed by all ranks before the first batch
    done: int = 0  # batches that they were consumed in, perhaps of another size

    @property
    def global_batch_size(self) -> int:
        """Samples of a batch on all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        stop = self.start + (self.num_batches - self.done) * self.global_batch_size
        for first in range(self.start, stop, self.global_batch_size):
            # every world_size-th position: a global batch holds the same samples for any number of ranks
            yield list(range(first + self.rank, first + self.global_batch_size, self.world_size))


class StreamLoader(DataLoader[Any]):
    """Loader over a stream whose state is the number of samples consumed, and of batches.

    Its length stays that of the whole training, also when it starts in the middle: Lightning counts the
    batches done before a resume towards it.

    Args:
        dataset: a sample at each position.
        positions: this rank's batches of them.
        patience: seconds that a batch may take to come from a loader process; then they are killed.

    Raises DataError: while iterated, on a damaged sample, or if a loader process ends or is stuck.
    """

    def __init__(
        self, dataset: Dataset[Any], positions: Positions, *, patience: float = 60.0, **options: Any
    ) -> None:
        super().__init__(dataset, batch_sampler=positions, **options)
        self.positions, self.patience = positions, patience
        self._consumed = self._batches = 0

    def __iter__(self) -> Iterator[Any]:
        self._consumed, self._batches = self.positions.start, self.positions.done
        batches = super().__iter__()
        try:
            while (batch := self._next(batches)) is not None:
                self._consumed += self.positions.global_batch_size
                self._batches += 1
                yield batch
        except DataError as error:  # that of a loader process comes wrapped in its traceback
            _ended(getattr(batches, "_workers", []), kill=True)  # torch would wait five seconds for each
            raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error
        except (RuntimeError, OSError, EOFError) as error:
            if not (ended := _ended(getattr(batches, "_workers", []))):
                raise
            raise DataError(
                f"loader process {', '.join(map(str, ended))} was killed, or gave nothing for "
                f"{self.patience:g} s, after sample {self._consumed} of the stream: start again to resume, "
                "with data.num_workers=0 if it happens there again"
            ) from error

    def _next(self, batches: Any) -> Any:
        if not self.num_workers:
            return next(batches, None)
        # DataLoader's own timeout waits for ever if a process stops in the middle of handing over a batch
        watchdog = Timer(self.patience, lambda: [worker.kill() for worker in batches._workers])
        watchdog.start()
        try:
            return next(batches, None)
        finally:
            watchdog.cancel()

    def state_dict(self) -> dict[str, int]:
        """Where the loader is, as a checkpoint stores it."""
        return {"position": self._consumed, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resumes where a `state_dict` was taken."""
        self.positions.start = self._consumed = state["position"]
        done = state["position"] // self.positions.global_batch_size  # as earlier versions had it
        self.positions.done = self._batches = state.get("batches", done)


def _ended(processes: list[BaseProcess], *, kill: bool = False) -> list[int]:
    """Ids of processes that ended by a signal or an error. The others may wait for these, and are killed."""
    ended: list[int] = []
    while True:
        try:
            for process in processes if kill or ended else ():
                process.kill()
            for process in processes:
                process.join(timeout=0.2)
            ended = ended or [process.pid for process in processes if process.exitcode]
            if not (kill or ended) or not any(process.is_alive() for process in processes):
                return ended
        except RuntimeError:  # torch's handler of SIGCHLD raises it wherever we are
            continue


class StreamData(LightningDataModule, ABC):
    """A data module whose batches to train on are consecutive positions of a stream.

    Args:
        size: side of the pictures in pixels.
        batch_size: samples per rank and step.
        seed: key of the order and of every random choice.
        num_workers: loader processes; the samples don't depend on it.
        worker_timeout: seconds that a batch may take to come from a loader process.

    Raises UserError: an option that no training can have.
    """

    def __init__(
        self, *, size: int, batch_size: int, seed: int = 0, num_workers: int = 0, worker_timeout: float = 60.0
    ) -> None:
        super().__init__()
        if size < 8:
            raise UserError(f"data.{size=} must be at least 8 pixels")
        for name, number, least in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if number < least:
                raise UserError(f"data.{name}={number} must be at least {least}")
        check_seed(seed, "data.seed")
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.num_workers, self.worker_timeout = num_workers, worker_timeout

    def train_dataloader(self) -> StreamLoader:
        """As `stream`, for the trainer that this module is attached to."""
        return self.stream(self.trainer)

    @abstractmethod
    def stream(self, trainer: Trainer) -> StreamLoader:
        """Loader over the whole training that a trainer is set up for."""

    def loader(
        self, trainer: Trainer, dataset: Dataset[Any], *, collate: Callable | None = None
    ) -> StreamLoader:
        """Loader of this rank's positions of a dataset, over the whole training of a trainer.

        Raises DataError: fewer numbered samples than all ranks take in one step.
        """
        positions = Positions(
            batch_size=self.batch_size,
            num_batches=trainer.max_steps * trainer.accumulate_grad_batches,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )
        if isinstance(dataset, StreamDataset) and dataset.size < positions.global_batch_size:
            raise DataError(
                f"the {dataset.size} samples to train on are fewer than a batch: {self.batch_size} a rank "
                f"on {positions.world_size} ranks are {positions.global_batch_size}; lower batch_size"
            )
        return StreamLoader(
            dataset,
            positions,
            num_workers=self.num_workers,
            patience=self.worker_timeout,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
