"""SOAP: Adam in the eigenbases of Shampoo's preconditioners (Vyas et al. 2024, alg. 3).

The mean outer products of a gradient's rows and columns have eigenvectors, along which Adam's square roots
are closer to the curvature than along the weights' own axes. The bases change slowly: one step of power
iteration and a QR decomposition every few steps follow them. Vectors take AdamW steps.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ldm.stages.matrix_optimizer import MatrixOptimizer


class Soap(MatrixOptimizer):
    """Adam in slowly turning eigenbases for matrices and kernels, AdamW for vectors.

    A kernel has a basis for each of its sides, as in the authors' code. The first gradient of a matrix gives
    its bases and moves nothing, so that no gradient is seen in a basis that was made of it.

    Args:
        params: parameters or groups of them.
        lr: learning rate of both.
        betas: of both; the second is that of the preconditioners, too.
        eps, weight_decay: of both; the decay is decoupled.
        every: steps between two changes of the bases.
        largest: side with a basis; longer ones keep their axes. Memory and QR grow with its square and cube.

    Raises UserError for parameters that are sharded over ranks.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        every: int = 10,
        largest: int = 1024,
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, adam | {"every": every, "largest": largest})

    def _state_numbers(self, p: Tensor, group: dict[str, Any]) -> int:
        return 2 * (p.numel() + sum(p.shape[side] ** 2 for side in _sides(p, group) if p.ndim >= 2))

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            state = self.state[p]
            sides = _sides(p, group)
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state |= {f"gram {side}": p.new_zeros(p.shape[side], p.shape[side]) for side in sides}
                _observe(state, sides, p.grad, group)
                for side in sides:  # descending, as `_turn` sorts them
                    state[f"basis {side}"] = torch.linalg.eigh(state[f"gram {side}"])[1].flip(1).contiguous()
                continue
            state["step"] += 1
            p.sub_(_direction(state, p.grad, group), alpha=group["lr"])
            _observe(state, sides, p.grad, group)
            if state["step"] % group["every"] == 0:
                _turn(state, sides)


def _sides(p: Tensor, group: dict[str, Any]) -> list[int]:
    """Numbers of the sides that have a basis."""
    return [side for side, length in enumerate(p.shape) if 1 < length <= group["largest"]]


def _direction(state: dict[str, Any], gradient: Tensor, group: dict[str, Any]) -> Tensor:
    """Adam's step per learning rate, taken in the bases; updates both moments."""
    bases = [state.get(f"basis {side}") for side in range(gradient.ndim)]
    fast, slow = group["betas"]
    # the mean is kept along the axes: it needs no turning with the bases, as the squares would
    state["mean"].lerp_(gradient, 1 - fast)
    state["square"].lerp_(rotated(gradient, bases).square(), 1 - slow)
    mean = rotated(state["mean"], bases) / (1 - fast ** state["step"])
    square = state["square"] / (1 - slow ** state["step"])
    return rotated(mean / (square.sqrt() + group["eps"]), bases, back=True)


def _observe(state: dict[str, Any], sides: list[int], gradient: Tensor, group: dict[str, Any]) -> None:
    for side in sides:
        rows = gradient.movedim(side, 0).flatten(1)
        state[f"gram {side}"].lerp_(rows @ rows.mT, 1 - group["betas"][1])


def _turn(state: dict[str, Any], sides: list[int]) -> None:
    """A step of power iteration of each basis; the squares follow the order of its eigenvalues."""
    for side in sides:
        basis = state[f"basis {side}"]
        product = state[f"gram {side}"] @ basis
        order = (basis * product).sum(dim=0).argsort(descending=True)
        state["square"] = state["square"].index_select(side, order)
        state[f"basis {side}"] = torch.linalg.qr(product[:, order]).Q.contiguous()


def rotated(x: Tensor, bases: list[Tensor | None], *, back: bool = False) -> Tensor:
    """A tensor along the columns of a basis for each of its sides, or back along its axes; None: as it is."""
    for basis in bases:
        # takes the first side away and appends it: after all of them the order is as before
        x = x.movedim(0, -1) if basis is None else torch.tensordot(x, basis, dims=([0], [1 if back else 0]))
    return x
