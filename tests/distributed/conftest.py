"""Real ranks, cheaply: forked processes that meet over gloo, and are ended whatever happens."""

import io
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ldm.distributed.launch import PLACE, WATCHER, follow_watcher
from ldm.distributed.ranks import join

LIMIT = 120.0  # seconds that ranks may take, on a machine with other work too


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def act(function: Callable[[int], Any], rank: int, count: int, port: int, pipe: Any) -> None:
    """A rank: meets the others, acts, and sends what came of it."""
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": count,
        "LOCAL_WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "tests",
        "GLOO_SOCKET_IFNAME": "lo",
        WATCHER: os.getppid(),
        PLACE: os.devnull,
    }
    os.environ |= {name: str(value) for name, value in variables.items()}
    torch.manual_seed(0)
    try:
        follow_watcher()
        join()
        answer = {"result": function(rank)}
    except BaseException:
        answer = {"error": traceback.format_exc()}
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
    pipe.recv_bytes()  # until all have answered: the first one keeps the place where they meet
    os._exit(0)


@pytest.fixture
def ranks() -> Callable[..., list[Any]]:
    """`ranks(function, count)`: what `function(rank)` returns in each of `count` processes."""

    def run(function: Callable[[int], Any], count: int = 2) -> list[Any]:
        context, port, deadline = multiprocessing.get_context("fork"), free_port(), time.monotonic() + LIMIT
        pipes = [context.Pipe() for _ in range(count)]
        processes = [
            context.Process(target=act, args=(function, rank, count, port, pipes[rank][1]), daemon=True)
            for rank in range(count)
        ]
        try:
            for process in processes:
                process.start()
            answers = []
            for rank, (ours, _) in enumerate(pipes):
                assert ours.poll(deadline - time.monotonic()), f"rank {rank} gave no answer"
                answers.append(torch.load(io.BytesIO(ours.recv_bytes()), weights_only=True))
            errors = [answer["error"] for answer in answers if "error" in answer]
            assert not errors, "\n".join(errors)
            return [answer["result"] for answer in answers]
        finally:
            for process in processes:
                process.kill()
                process.join()

    return run
