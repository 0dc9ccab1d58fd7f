"""Better, worse or inconclusive: differences judged together, so that many measures find no chance result."""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.intervals import Bounds, Estimate


class Verdict(NamedTuple):
    """What a comparison says of one measure.

    Attributes:
        word: of the second side: "better", "worse" or "inconclusive"; "higher" or "lower" where the better
            direction isn't known.
        bounds: of the difference, at the level that decided; None where nothing is known of its spread.
    """

    word: str
    difference: float
    bounds: Bounds | None
    contains: str


def judged(
    estimates: Mapping[str, Estimate], *, higher_is_better: Mapping[str, bool | None], level: float
) -> dict[str, Verdict]:
    """The verdict on each measure, by Holm's procedure (1979) over all of them.

    Of m measures, those whose interval at 1 - (1 - level) / m excludes 0 are decided; then the rest are held
    against the level for their smaller number, until none is decided. All verdicts together are right with
    the probability `level` if nothing differs, and each interval shown is the one that decided.
    """
    left = {name: each.interval for name, each in estimates.items() if each.interval is not None}
    bounds: dict[str, Bounds] = {}
    while left:
        found = {name: interval(1 - (1 - level) / len(left)) for name, interval in left.items()}
        bounds |= found
        decided = {name for name, (low, high) in found.items() if low > 0 or high < 0}
        if not decided:
            break
        left = {name: interval for name, interval in left.items() if name not in decided}
    return {
        name: Verdict(
            _word(bounds.get(name), higher_is_better[name]), each.difference, bounds.get(name), each.contains
        )
        for name, each in estimates.items()
    }


def _word(bounds: Bounds | None, higher_is_better: bool | None) -> str:
    if bounds is None or not (bounds[0] > 0 or bounds[1] < 0):  # NaN, too
        return "inconclusive"
    if higher_is_better is None:
        return "higher" if bounds[0] > 0 else "lower"
    return "better" if (bounds[0] > 0) == higher_is_better else "worse"
