"""The endless stream of training samples, and a loader that can start anywhere in it.

Position p of the stream is sample `permutation(seed, p // n)[p % n]`. Batches are consecutive positions, so
a batch may cross from one epoch into the next and none is ever short: every rank has the same number of
batches by construction, and one integer says where a run is.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from ldm.data import keyed


class StreamDataset(Dataset[Any]):
    """`make(number, position)` at each position of the stream over `size` samples."""

    def __init__(self, make: Callable[[int, int], Any], *, size: int, seed: int) -> None:
        self.make, self.size, self.seed = make, size, seed
        self._order = lru_cache(maxsize=2)(keyed.permutation)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "_order"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__ |= state
        self._order = lru_cache(maxsize=2)(keyed.permutation)

    def number(self, position: int) -> int:
        """Which sample stands at a position."""
        epoch, place = divmod(position, self.size)
        return int(self._order(self.seed, epoch, self.size)[place])

    def __getitem__(self, position: int) -> Any:
        return self.make(self.number(position), position)


class Positions(Sampler[list[int]]):
    """Batches of positions for one rank: global batch k holds k * batch * world and on, dealt out in turn."""

    def __init__(self, *, batch_size: int, num_batches: int, rank: int = 0, world_size: int = 1) -> None:
        self.batch_size, self.num_batches = batch_size, num_batches
        self.rank, self.world_size = rank, world_size
        self.start = 0  # positions consumed by all ranks before the first batch

    @property
    def global_batch_size(self) -> int:
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        stop = self.num_batches * self.global_batch_size
        for first in range(self.start, stop, self.global_batch_size):
            yield list(range(first + self.rank, first + self.global_batch_size, self.world_size))


class StreamLoader(DataLoader[Any]):
    """Loader over a stream whose state is the number of samples consumed.

    Its length stays that of the whole training, also when it starts in the middle: Lightning counts the
    batches done before a resume towards it.
    """

    def __init__(self, dataset: StreamDataset, positions: Positions, **options: Any) -> None:
        super().__init__(dataset, batch_sampler=positions, **options)
        self.positions = positions
        self._consumed = 0

    def __iter__(self) -> Iterator[Any]:
        self._consumed = self.positions.start
        for batch in super().__iter__():
            self._consumed += self.positions.global_batch_size
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"position": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.positions.start = self._consumed = state["position"]
