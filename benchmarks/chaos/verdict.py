"""What came of one kind of violence."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How often it was tried and how it went.

    Attributes:
        tries: how often.
        failures: what was wrong in a try, one sentence each.
        lost: most steps that a try had to take again.
        interval: steps between two states, of which one may be lost.
        says: what else is worth telling.
    """

    tries: int
    failures: list[str]
    lost: int
    interval: int
    says: str = ""

    @property
    def passed(self) -> bool:
        return self.tries > 0 and not self.failures and self.lost <= self.interval


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of violence.

    Attributes:
        area: saves, disk, trainings, resumes or cost.
        name: what is done.
        tries: how often, in the long form and in the short one.
        run: does it so many times in an empty folder.
    """

    area: str
    name: str
    tries: tuple[int, int]
    run: Callable[[Path, int], Verdict]


def verdict_of(
    ways: Sequence[T], attempt: Callable[[T], tuple[list[str], int]], *, tries: int, interval: int
) -> Verdict:
    """What came of all ways, or of `tries` of them spread over all.

    Args:
        attempt: takes one way; returns what was wrong and the steps that it had to take again.
    """
    failures, lost, chosen = [], 0, spread(len(ways), tries)
    for number in chosen:
        wrongs, again = attempt(ways[number])
        lost = max(lost, again)
        failures += [f"try {number}: {sentence}" for sentence in wrongs]
    return Verdict(tries=len(chosen), failures=failures, lost=lost, interval=interval)


def spread(count: int, tries: int) -> Sequence[int]:
    """The numbers below `count`, or `tries` of them spread over all."""
    if tries > count:
        return range(count)
    return [count * (2 * n + 1) // (2 * tries) for n in range(tries)]
