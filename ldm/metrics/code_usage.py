"""How much of its codebook a tokenizer of pictures uses."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class CodeUsage(Metric):
    """Codes in use and the entropy of their distribution, over all places of all pictures.

    Args:
        num_codes: size of the codebook.
        options: of `torchmetrics.Metric`.
    """

    full_state_update: ClassVar[bool] = False
    counts: Tensor

    def __init__(self, *, num_codes: int, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("counts", torch.zeros(num_codes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, codes: Int[Tensor, "*n"]) -> None:
        """Adds the codes of a batch."""
        # a comparison at a size, not bincount, whose result on a GPU waits for the largest code
        places = codes.flatten()
        self.counts.index_add_(0, places, torch.ones_like(places))

    def compute(self) -> dict[str, Tensor]:
        """`used`, how many codes occur, and `entropy` of their shares in bits: at most log2 of all codes."""
        shares = self.counts.double() / self.counts.sum().clamp(min=1)
        entropy = -torch.special.xlogy(shares, shares).sum() / math.log(2)
        return {"used": (self.counts > 0).sum().double(), "entropy": entropy}
