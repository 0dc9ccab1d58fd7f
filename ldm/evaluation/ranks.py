"""Processes that measure together: each takes its share, all get all results, none waits for a lost one."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process failed, so that this one can't go on with what they did together."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `count` of them; the default is one alone.

    Attributes:
        group: one of its own, so that what is exchanged here is never mixed up with a training's messages.
    """

    number: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def joined(cls, *, timeout: float) -> "Ranks":
        """All processes of the running training or command; every one of them must call this.

        Args:
            timeout: seconds after which a process stops waiting for the others.
        """
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return cls(number=distributed.get_rank(), count=distributed.get_world_size(), group=group)

    @classmethod
    def started(cls, *, timeout: float = 1800) -> "Ranks":
        """The processes that torchrun has started for a command, or this one alone."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return cls.joined(timeout=timeout)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: every `count`th, so that shares differ by one at most and may be empty."""
        return items[self.number :: self.count]

    def gather(self, own: T) -> list[T]:
        """What each process has, in their order.

        Raises:
            RankError: a process has gone, or hasn't come within the timeout.
        """
        if self.count == 1:
            return [own]
        everyone: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(everyone, own, group=self.group)
        except RuntimeError as error:
            raise RankError(f"a process has stopped or is late: {error}") from error
        return everyone

    def together(self, action: Callable[[], T]) -> list[T]:
        """Runs an action that exchanges nothing in each process, and gives every process all results.

        Raises:
            RankError: it failed in another process. Where it failed itself, its own error is raised; so a
                failure of one ends in an error in all, and nobody waits.
        """
        if self.count == 1:
            return [action()]
        failure: Exception | None = None
        result: T | None = None
        try:
            result = action()
        except Exception as error:
            failure = error
        everyone = self.gather((result, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for number, (_, message) in enumerate(everyone):
            if message is not None:
                raise RankError(f"process {number} failed: {message}")
        return [each for each, _ in everyone]  # type: ignore[misc]

    def in_turns(self, own: Iterator[T]) -> Iterator[T]:
        """What all processes make of their shares, in the order of the items before `share` dealt them out.

        Each process makes one at a time and all get it: nobody holds a share, let alone all of them.

        Raises:
            RankError: it failed in another process; where it failed itself, its own error is raised.
        """
        while made := [each for one in self.together(lambda: list(islice(own, 1))) for each in one]:
            yield from made
