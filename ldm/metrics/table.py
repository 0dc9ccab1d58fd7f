"""Rows of features in the parts in which they came, read a block at a time in any order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldm.metrics.filed import ROWS_AT_ONCE, read


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows that are never copied whole: measures that share the parts cost one copy of the features together.

    That copy may lie in files (`ldm.metrics.filed`): a block is then all that is in memory.

    Attributes:
        parts: tables one below the other.
        order: in which their rows are read.
        unit: whether rows are scaled to length 1 as they are read.
    """

    parts: Sequence[Float[Tensor, "_ d"]]
    order: Int[Tensor, "n"]
    unit: bool = False

    def __len__(self) -> int:
        return len(self.order)

    def block(self, numbers: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
        """The rows with these numbers in the table's order, float64."""
        starts = torch.tensor([0, *accumulate(map(len, self.parts))])
        wanted = self.order[numbers].cpu()
        owners = torch.bucketize(wanted, starts, right=True) - 1
        first = self.parts[0]
        found = torch.empty(len(wanted), first.shape[1], dtype=torch.float64, device=first.device)
        for owner in owners.unique().tolist():
            mine = owners == owner
            found[mine] = read(self.parts[owner], wanted[mine] - starts[owner]).double()
        return F.normalize(found, dim=1) if self.unit else found


Rows = Float[Tensor, "_ _"] | Table


def stacked(parts: Sequence[Float[Tensor, "_ d"]] | Float[Tensor, "n d"]) -> Table:
    """A measure's batches one below the other, or the one tensor that they are once ranks have met."""
    parts = [parts] if isinstance(parts, Tensor) else parts
    return Table(parts=parts, order=torch.arange(sum(map(len, parts))))


def picked(rows: Rows, numbers: Int[Tensor, "b"]) -> Float[Tensor, "b d"]:
    """The rows with these numbers, float64."""
    return rows.block(numbers) if isinstance(rows, Table) else read(rows, numbers).double()


def blocks(rows: Rows) -> Iterator[Float[Tensor, "b d"]]:
    """All rows in their order, `ROWS_AT_ONCE` of them at a time, float64."""
    for numbers in torch.arange(len(rows)).split(ROWS_AT_ONCE):
        yield picked(rows, numbers)


def unit_rows(rows: Rows) -> Table:
    """The same with every row scaled to length 1."""
    return replace(rows if isinstance(rows, Table) else stacked(rows), unit=True)
