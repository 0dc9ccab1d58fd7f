"""Memory for time: what a module kept for its backward pass is computed again instead (Chen et al. 2016)."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def apply(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """The module's output; with ``recompute`` only its inputs are kept where gradients are wanted."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
