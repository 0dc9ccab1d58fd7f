"""Muon: momentum whose matrices are made orthogonal before each step (Jordan et al. 2024).

Gradients of matrices are of low effective rank, so a few directions take all of an Adam step; here every
direction gets the same length. Vectors take AdamW steps. Steps of matrices are scaled to the size that Adam's
have (Liu et al. 2025, eq. 4), so both live under one learning rate and one weight decay.

It is our own, as `torch.optim.Muon` refuses every parameter that isn't 2-D: kernels of convolutions, which
are most of a U-Net, and vectors, for which it would take a second optimizer beside it. Each rank makes
whole stacks of matrices orthogonal, for a product's last bit may depend on what else is in its batch.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ldm.stages.matrix_optimizer import MatrixOptimizer, share_out

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0, keeps singular values near 1
ADAM_SIZE = 0.2  # root mean square of an Adam step per learning rate (Liu et al. 2025)


class Muon(MatrixOptimizer):
    """Orthogonalised momentum for matrices and kernels, AdamW for vectors.

    Args:
        params: parameters or groups of them.
        lr: learning rate of both.
        momentum: of the matrices.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
        iterations: of the orthogonalisation.

    Raises UserError for parameters that are sharded over ranks.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        iterations: int = 5,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, adam | {"momentum": momentum, "iterations": iterations})

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        stacks: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
        for p in parameters:
            # a kernel is a matrix of outputs by inputs at all its places, as Jordan et al. take it
            stacks[tuple(p.flatten(1).shape)].append(p)
            if "momentum" not in self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        moments = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(moments, [p.grad for p in parameters], 1 - group["momentum"])
        directions = partial(self._directions, group=group)
        for stack, found in share_out([*stacks.values()], directions, cost=_operations, dtype=torch.bfloat16):
            shape = stack[0].flatten(1).shape
            for p, direction in zip(stack, found.view(len(stack), *shape), strict=True):
                p.sub_(direction.view_as(p), alpha=group["lr"] * ADAM_SIZE * max(shape) ** 0.5)

    def _directions(self, stack: list[Tensor], group: dict[str, Any]) -> Tensor:
        """The orthogonal directions of parameters that are matrices of one shape; b m n."""
        moments = [self.state[p]["momentum"] for p in stack]
        ahead = torch._foreach_lerp([p.grad for p in stack], moments, group["momentum"])  # Nesterov's
        matrices = torch.stack([direction.flatten(1) for direction in ahead])
        return orthogonal(matrices, iterations=group["iterations"])


def _operations(stack: list[Tensor]) -> int:
    """Multiplications of an iteration: the Gram matrix, its square, and a polynomial of it by the matrix."""
    short, long = sorted(stack[0].flatten(1).shape)
    return len(stack) * short**2 * (2 * long + short)


def orthogonal(matrices: Tensor, *, iterations: int) -> Tensor:
    """About U V' for each matrix U S V': Newton-Schulz iterations in bfloat16; b m n, float32.

    Singular values end between about 0.7 and 1.2, which serves a step as well as 1.
    """
    a, b, c = QUINTIC
    # the smaller Gram matrix costs less
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    # the norm bounds the largest singular value by 1, from where the iteration converges; bfloat16 suffices,
    # as the singular values need not be exact
    x = (wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrices else x.mT).to(matrices.dtype)
