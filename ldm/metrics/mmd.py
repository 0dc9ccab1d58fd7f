"""Maximum mean discrepancy of two sets under a kernel (Gretton et al. 2012), of many subsets at once."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ldm.metrics.table import ROWS_AT_ONCE, Rows, blocks

Kernel = Callable[[Tensor, Tensor], Tensor]  # n d, m d -> n m


def polynomial(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x . y / d + 1)^3 (Binkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, sigma: float) -> Float[Tensor, "n m"]:
    """exp(-|x - y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * sigma**2))


def unbiased_mmd(
    x: Rows, y: Rows, *, kernel: Kernel, subsets: tuple[Float[Tensor, "k n"], Float[Tensor, "k m"]]
) -> Float[Tensor, " k"]:
    """Squared discrepancy of each pair of subsets without the pairs of a row with itself (eq. 3), float64.

    Args:
        subsets: of x and of y, a row each, 1 for a member and 0 for the others.
    """
    in_x, in_y = subsets
    return _within(x, in_x, kernel) + _within(y, in_y, kernel) - 2 * _between(x, y, in_x, in_y, kernel)


def biased_mmd(x: Rows, y: Rows, *, kernel: Kernel) -> Float[Tensor, ""]:
    """Squared discrepancy of all of x and y, rows with themselves among the pairs (eq. 5), float64, >= 0."""
    all_x, all_y = (torch.ones(1, len(rows), dtype=torch.float64) for rows in (x, y))
    within = _between(x, x, all_x, all_x, kernel) + _between(y, y, all_y, all_y, kernel)
    return (within - 2 * _between(x, y, all_x, all_y, kernel)).squeeze(0)


def _within(x: Rows, members: Float[Tensor, "k n"], kernel: Kernel) -> Float[Tensor, " k"]:
    """Mean kernel of different rows of each subset."""
    size = members.sum(1)
    own = torch.cat([_with_itself(block, kernel) for block in blocks(x)])
    pairs = _between(x, x, members, members, kernel) * size**2 - members @ own.to(members.device)
    return pairs / (size * (size - 1))


def _with_itself(rows: Float[Tensor, "b d"], kernel: Kernel) -> Float[Tensor, "b"]:
    """Kernel of each row with itself."""
    return torch.cat([kernel(row[None], row[None])[0] for row in rows])


def _between(
    x: Rows, y: Rows, in_x: Float[Tensor, "k n"], in_y: Float[Tensor, "k m"], kernel: Kernel
) -> Float[Tensor, " k"]:
    """Mean kernel over all pairs of each subset of x with that of y: the matrix is never held whole."""
    total = torch.zeros(len(in_x), dtype=torch.float64, device=in_x.device)
    of_x, of_y = (members.split(ROWS_AT_ONCE, dim=1) for members in (in_x, in_y))
    for rows, in_rows in zip(blocks(x), of_x, strict=True):
        for columns, in_columns in zip(blocks(y), of_y, strict=True):
            values = kernel(rows, columns).to(total.device)
            total += ((in_rows @ values) * in_columns).sum(1)
    return total / (in_x.sum(1) * in_y.sum(1))
