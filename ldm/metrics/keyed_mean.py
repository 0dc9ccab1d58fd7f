"""A mean over pictures that doesn't depend on how they came: in which batches, order or ranks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError


class KeyedMean(Metric):
    """Mean over pictures of one number each, float64, summed in the order of their keys.

    A picture that comes twice, as when every rank validates on all of them, counts once.
    """

    full_state_update = False
    is_differentiable = False

    def __init__(self) -> None:
        super().__init__()
        for name in ("values", "keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, values: Float[Tensor, " b"], keys: Int[Tensor, " b"]) -> None:
        """Adds the numbers of some pictures, whose keys say which they are."""
        self.values.append(values.detach().double())
        self.keys.append(keys)

    def compute(self) -> Float[Tensor, ""]:
        """The mean; UserError if no picture was added."""
        if not len(self.keys):
            raise UserError("a mean over pictures needs at least one picture")
        keys, values = dim_zero_cat(self.keys), dim_zero_cat(self.values)
        order = keys.argsort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = keys[order].diff() != 0
        return values[order][first].mean()
