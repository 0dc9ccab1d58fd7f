"""Optimizers and learning-rate schedules, as every stage uses them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ldm import UserError

OptimizerFactory = Callable[[Iterable[Any]], Optimizer]
Decay = Callable[[int], float]  # step -> factor of the learning rate


def warmup_cosine(step: int, *, warmup: int, steps: int, floor: float = 0.0) -> float:
    """Linear rise over `warmup` steps (below 0: UserError), then half a cosine down to `floor` at `steps`."""
    rise = warmup_constant(step, warmup=warmup)
    if step < warmup:
        return rise
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_constant(step: int, *, warmup: int) -> float:
    """Linear rise over `warmup` steps, then 1; raises UserError for a `warmup` below 0."""
    if warmup < 0:
        raise UserError(f"decay.{warmup=} must be at least 0")
    # from 1 / warmup: at rate 0 the first step would change nothing
    return min(1.0, (step + 1) / max(1, warmup))


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Matrices and kernels with the optimizer's weight decay; gains, biases and other vectors without."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2]},
        # decay would pull the gains of normalisations to 0, which changes what the layers compute
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def configure(module: nn.Module, optimizer: OptimizerFactory, decay: Decay) -> tuple[Optimizer, LambdaLR]:
    """An optimizer over a module's parameters and the schedule that steps with it.

    Raises UserError for a learning rate that isn't finite and above 0, or a schedule with wrong options.
    """
    _check_rate(getattr(optimizer, "keywords", {}).get("lr", 1.0))  # before torch refuses it in its own words
    made = optimizer(parameter_groups(module))
    for group in made.param_groups:
        _check_rate(group["lr"])
    return made, LambdaLR(made, decay)


def _check_rate(rate: object) -> None:
    if not isinstance(rate, int | float) or not 0 < rate < math.inf:
        raise UserError(f"optimizer.lr={rate} must be a finite number above 0")


def check_optimizer(optimizer: OptimizerFactory, decay: Decay) -> None:
    """Raises what `configure` would raise only when the training begins and its folder is there."""
    configure(nn.Linear(1, 1), optimizer, decay)
