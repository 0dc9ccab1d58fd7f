"""Optimizers that treat matrices apart: a subclass says how a matrix steps; vectors take AdamW steps."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ldm import UserError


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
            self._step_matrices([p for p in trained if p.ndim >= 2], group)
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
