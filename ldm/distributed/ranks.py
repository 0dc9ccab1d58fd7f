"""Collective operations of a training's ranks. With one process they all return at once."""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from ldm.distributed import is_rank

TIMEOUT = timedelta(minutes=10)  # that a rank waits while another computes, such as samples
T = TypeVar("T")


class LostRank(RuntimeError):
    """Another rank has died, so that this one can't continue."""


def join() -> None:
    """Meets the other ranks, if this process was started as one of several; LostRank if they don't come."""
    if not is_rank() or distributed.is_initialized():
        return
    place: ClusterEnvironment = TorchElasticEnvironment() if "RANK" in os.environ else SLURMEnvironment()
    # here, and not by Lightning: ranks agree on the run and its folder before there is a trainer
    if torch.cuda.is_available():
        torch.cuda.set_device(place.local_rank() % torch.cuda.device_count())
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = place.main_address, str(place.main_port)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            rank=place.global_rank(),
            world_size=place.world_size(),
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise LostRank(f"rank {place.global_rank()} does not meet the others ({error})") from error


def leave() -> None:
    """Leaves the group of `join`."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number among all ranks."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this rank is the one that writes and prints."""
    return rank() == 0


def broadcast(value: T) -> T:
    """The first rank's value, on every rank."""
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def all_gather(value: T) -> list[T]:
    """Every rank's value, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


def any_rank(flags: Tensor) -> Tensor:
    """For each flag, whether it is set on any rank; on the flags' device, without waiting."""
    if world_size() == 1:
        return flags
    numbers = flags.int()
    distributed.all_reduce(numbers, distributed.ReduceOp.MAX)
    return numbers.bool()


def average(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors by their means over the ranks, with one all-reduce."""
    parts = list(tensors)
    if world_size() == 1 or not parts:
        return
    flat = torch.cat([part.flatten() for part in parts])
    distributed.all_reduce(flat)
    for part, mean in zip(parts, (flat / world_size()).split([part.numel() for part in parts]), strict=True):
        part.copy_(mean.view_as(part))


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its shards; a collective call of all ranks."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, or the tensor where it isn't sharded; both share their memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The whole state of a module whose parameters may be sharded; a collective call of all ranks."""
    return {name: whole(tensor.detach()) for name, tensor in module.state_dict().items()}


def is_lost(error: BaseException) -> bool:
    """Whether an error means that a collective call has failed because another rank died."""
    if isinstance(error, LostRank | distributed.DistError):
        return True
    # gloo and NCCL raise plain RuntimeErrors, which only their words tell apart
    words = ("gloo", "nccl", "connection closed by peer", "connection reset", "socket timeout", "tcpstore")
    text = str(error).lower()
    return isinstance(error, RuntimeError) and world_size() > 1 and any(word in text for word in words)
