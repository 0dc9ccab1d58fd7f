"""Optimizers that treat matrices apart: a subclass says how a matrix steps; vectors take AdamW steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ldm import UserError
from ldm.distributed.ranks import rank, world_size

T = TypeVar("T")


class MatrixOptimizer(Optimizer, ABC):
    """Decoupled weight decay, a step of the subclass for matrices and kernels, AdamW for all else.

    Args:
        params: parameters or groups of them.
        defaults: options of a group; `lr`, `betas` and `eps` of AdamW and `weight_decay` are among them.

    Raises UserError for parameters that are sharded over ranks.
    """

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults | {"betas": tuple(defaults["betas"])})
        if any(isinstance(p, DTensor) for group in self.param_groups for p in group["params"]):
            raise UserError(
                f"optimizer={type(self).__name__.lower()} needs whole matrices, and trainer=fsdp leaves each "
                "rank a shard of them: take optimizer=adamw or trainer=ddp"
            )

    @abstractmethod
    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Changes matrices and kernels, whose decay is done."""

    @property
    def state_bytes(self) -> int:
        """About how many bytes its state takes in a checkpoint."""
        return sum(
            self._state_numbers(p, group) * p.itemsize for group in self.param_groups for p in group["params"]
        )

    def _state_numbers(self, p: Tensor, group: dict[str, Any]) -> int:
        """How many numbers are kept for a parameter: two moments."""
        return 2 * p.numel()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step, after a call of `closure` that computes the gradients; returns what that returns."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            trained = [parameter for parameter in group["params"] if parameter.grad is not None]
            # decoupled from the gradient, as in AdamW (Loshchilov & Hutter 2019)
            # _foreach: a few kernel launches in place of one per parameter
            torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            if matrices := [p for p in trained if p.ndim >= 2]:
                self._step_matrices(matrices, group)
            for p in trained:
                if p.ndim < 2:
                    _adam(p, self.state[p], group)
        return loss


def _adam(p: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    fast, slow = group["betas"]
    if not state:
        state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
    state["step"] += 1
    state["mean"].lerp_(p.grad, 1 - fast)
    state["square"].lerp_(p.grad.square(), 1 - slow)
    mean = state["mean"] / (1 - fast ** state["step"])
    square = state["square"] / (1 - slow ** state["step"])
    p.addcdiv_(mean, square.sqrt() + group["eps"], value=-group["lr"])


def share_out(
    stacks: Sequence[list[Tensor]],
    compute: Callable[[list[Tensor]], Tensor],
    *,
    cost: Callable[[list[Tensor]], int],
    dtype: torch.dtype,
) -> Iterable[tuple[list[Tensor], Tensor]]:
    """Each stack with its result of as many values, computed on one rank and exchanged by one all-gather.

    All ranks must call it, with the same stacks. Several get flat results in `dtype`, one what is computed.
    """
    if world_size() == 1:
        return ((stack, compute(stack)) for stack in stacks)
    shares = balanced(stacks, world_size(), cost=cost)
    sizes = [[sum(tensor.numel() for tensor in stack) for stack in share] for share in shares]
    flat = torch.empty(len(shares), max(map(sum, sizes)), dtype=dtype, device=stacks[0][0].device)
    places = [row[: sum(lengths)].split(lengths) for row, lengths in zip(flat, sizes, strict=True)]
    for stack, place in zip(shares[rank()], places[rank()], strict=True):
        place.copy_(compute(stack).flatten())
    distributed.all_gather([*flat], flat[rank()])
    return zip(chain(*shares), chain(*places), strict=True)


def balanced(items: Iterable[T], count: int, *, cost: Callable[[T], int]) -> list[list[T]]:
    """`count` shares that cost about the same: the dearest item first, each to the cheapest share so far."""
    shares, loads = [list[T]() for _ in range(count)], [0] * count
    for item in sorted(items, key=cost, reverse=True):
        cheapest = loads.index(min(loads))
        shares[cheapest].append(item)
        loads[cheapest] += cost(item)
    return shares
