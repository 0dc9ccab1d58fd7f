"""A metric as a user writes one: this file, and conf/metric/brightness.yaml beside it."""

import torch
from torch import Tensor

from ldm.metrics.picture_metric import Observed, PictureMetric, features_of


class Brightness(PictureMetric):
    """Mean of all pixels of the generated pictures: `brightness`."""

    reading = "mean of all pixels, from 0 to 255; near the real pictures' own is better"
    references = ("real",)
    against_real = False
    minimum_images = 4
    needs = ("pixels",)

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            pixels = features_of(batch, "pixels").double()
            self.total, self.count = self.total + pixels.sum(), self.count + pixels.numel()

    def compute(self) -> dict[str, Tensor]:
        return {"brightness": self.total / self.count}
