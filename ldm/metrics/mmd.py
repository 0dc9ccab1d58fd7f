"""Maximum mean discrepancy of two sets under a kernel (Gretton et al. 2012), of many subsets at once."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm.metrics.table import Rows, blocks

Kernel = Callable[[Tensor, Tensor], Tensor]  # n d, m d -> n m
SUBSETS_AT_ONCE = 8  # bounds the memory of their product with all rows; more give it the same bits


def polynomial(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x . y / d + 1)^3 (Binkowski et al. 2018, section 4)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"], *, sigma: float) -> Float[Tensor, "n m"]:
    """exp(-|x - y|^2 / (2 sigma^2))."""
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.exp(-squares.clamp(min=0) / (2 * sigma**2))


def unbiased_mmd(
    x: Rows, y: Rows, *, kernel: Kernel, subsets: tuple[Int[Tensor, "k s"], Int[Tensor, "k t"]]
) -> Float[Tensor, " k"]:
    """Squared discrepancy of each pair of subsets without the pairs of a row with itself (eq. 3), float64.

    Args:
        subsets: of x and of y, the numbers of the rows that are in each; none is there twice.
    """
    of_x, of_y = subsets
    return _within(x, of_x, kernel) + _within(y, of_y, kernel) - 2 * _between(x, y, of_x, of_y, kernel)


def biased_mmd(x: Rows, y: Rows, *, kernel: Kernel) -> Float[Tensor, ""]:
    """Squared discrepancy of all of x and y, rows with themselves among the pairs (eq. 5), float64, >= 0."""
    all_x, all_y = (torch.arange(len(rows))[None] for rows in (x, y))
    within = _between(x, x, all_x, all_x, kernel) + _between(y, y, all_y, all_y, kernel)
    return (within - 2 * _between(x, y, all_x, all_y, kernel)).squeeze(0)


def _within(x: Rows, subsets: Int[Tensor, "k s"], kernel: Kernel) -> Float[Tensor, " k"]:
    """Mean kernel of different rows of each subset."""
    size = subsets.shape[1]
    own = torch.cat([_with_itself(block, kernel) for block in blocks(x)]).to(subsets.device)
    sums = torch.cat([_members(part, 0, len(own)) @ own for part in subsets.split(SUBSETS_AT_ONCE)])
    pairs = _between(x, x, subsets, subsets, kernel) * size**2 - sums
    return pairs / (size * (size - 1))


def _with_itself(rows: Float[Tensor, "b d"], kernel: Kernel) -> Float[Tensor, "b"]:
    """Kernel of each row with itself."""
    return torch.cat([kernel(row[None], row[None])[0] for row in rows])


def _between(
    x: Rows, y: Rows, of_x: Int[Tensor, "k s"], of_y: Int[Tensor, "k t"], kernel: Kernel
) -> Float[Tensor, " k"]:
    """Mean kernel over all pairs of each subset of x with that of y: the matrix is never held whole."""
    total = torch.zeros(len(of_x), dtype=torch.float64, device=of_x.device)
    for rows, in_rows in _with_members(x, of_x):
        for columns, in_columns in _with_members(y, of_y):
            values = kernel(rows, columns).to(total.device)
            total += ((in_rows @ values) * in_columns).sum(1)
    return total / (of_x.shape[1] * of_y.shape[1])


def _with_members(
    rows: Rows, subsets: Int[Tensor, "k s"]
) -> Iterator[tuple[Float[Tensor, "b d"], Float[Tensor, "k b"]]]:
    """Each block of rows, and which of them are in each subset."""
    start = 0
    for block in blocks(rows):
        yield block, _members(subsets, start, start + len(block))
        start += len(block)


def _members(subsets: Int[Tensor, "k s"], start: int, stop: int) -> Float[Tensor, "k b"]:
    """Which of the rows from one number to another are in each subset: 1 for a member, 0 for the others."""
    number, place = ((subsets >= start) & (subsets < stop)).nonzero(as_tuple=True)
    members = torch.zeros(len(subsets), stop - start, dtype=torch.float64, device=subsets.device)
    members[number, subsets[number, place] - start] = 1
    return members
