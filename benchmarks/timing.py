"""Ways to do one thing, timed in turns: what the machine does besides meets all of them alike."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import TypeVar

Name = TypeVar("Name")


def in_turns(
    ways: Mapping[Name, Callable[[], object]],
    *,
    rounds: int,
    warm: int = 1,
    clock: Callable[[], float] = perf_counter,
) -> dict[Name, list[float]]:
    """Seconds of each way in each round.

    Args:
        warm: rounds before the first that counts.
        clock: `time.process_time` leaves out what other processes take.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in ways}
    for number in range(warm + rounds):
        for name, action in ways.items():
            began = clock()
            action()
            if number >= warm:
                seconds[name].append(clock() - began)
    return seconds
