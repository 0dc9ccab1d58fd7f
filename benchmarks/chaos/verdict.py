"""What came of one kind of violence."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


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
