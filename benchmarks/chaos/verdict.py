"""What came of ending a training or a save: steps lost."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.harness import Verdict

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Loss(Verdict):
    """The verdict on faults that may cost steps.

    Attributes:
        lost: most steps that a try had to take again.
        interval: steps between two checkpoints, of which one interval may be lost.
    """

    lost: int = 0
    interval: int = 0

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong, and no more than an interval was lost."""
        return super().passed and self.lost <= self.interval

    @property
    def steps(self) -> str:
        """The steps lost, of those that may be."""
        return f"{self.lost} of {self.interval}"


def verdict_of(
    ways: Sequence[T], attempt: Callable[[T], tuple[list[str], int]], *, tries: int, interval: int
) -> Loss:
    """What came of all ways, or of `tries` of them spread over all.

    Args:
        attempt: takes one way; returns what was wrong and the steps that it had to take again.
    """
    failures, lost, chosen = [], 0, spread(len(ways), tries)
    for number in chosen:
        wrongs, again = attempt(ways[number])
        lost = max(lost, again)
        failures += [f"try {number}: {sentence}" for sentence in wrongs]
    return Loss(tries=len(chosen), failures=failures, lost=lost, interval=interval)


def spread(count: int, tries: int) -> Sequence[int]:
    """The numbers below `count`, or `tries` of them spread over all."""
    if tries > count:
        return range(count)
    return [count * (2 * n + 1) // (2 * tries) for n in range(tries)]
