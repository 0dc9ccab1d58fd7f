"""Many tasks over several processes, with an answer for the one that is killed."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process
from multiprocessing.connection import wait
from threading import Thread
from typing import TypeVar

from ldm.data.index import DataError

Task = TypeVar("Task")
Result = TypeVar("Result")


def over_processes(
    function: Callable[[Task], Result], tasks: Iterable[Task], *, num_workers: int
) -> Iterator[Result]:
    """`function` of every task, in the order in which they end; with `num_workers=0` in this process.

    Raises:
        DataError: a worker was killed. What a task raises comes through; tasks not yet begun are dropped.
    """
    if not num_workers:
        yield from map(function, tasks)
        return
    with ProcessPoolExecutor(num_workers, initializer=_end_with_parent) as pool:
        try:
            futures = [pool.submit(function, task) for task in tasks]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a worker process was killed, perhaps for want of memory: run the same command again to go"
                " on, with a smaller num_workers if it happens again"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    # a worker of a killed command would wait for tasks for ever
    Thread(target=_watch_parent, daemon=True).start()


def _watch_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
