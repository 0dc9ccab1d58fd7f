"""Batches of one shape from pictures of many: each goes to the bucket whose shape is nearest to its own."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ldm import UserError
from ldm.data import keyed


class Buckets:
    """Shapes of about the same area.

    Args:
        size: square root of the largest area, in pixels.
        multiple: of which both sides are multiples: the autoencoder's factor times the denoiser's.
        stretch: largest quotient of the sides.

    Attributes:
        shapes: (height, width) of each bucket, from tall to wide.

    Raises:
        UserError: no shape has such sides.
    """

    def __init__(self, *, size: int, multiple: int = 32, stretch: float = 2.0) -> None:
        sides = range(multiple, int(size * math.sqrt(stretch)) + 1, multiple)
        upright = {(side, size**2 // side // multiple * multiple) for side in sides if side >= size}
        upright = {(height, width) for height, width in upright if width and height / width <= stretch}
        self.shapes = sorted(
            upright | {shape[::-1] for shape in upright}, key=lambda shape: shape[1] / shape[0]
        )
        if not self.shapes:
            raise UserError(f"no bucket of {size=} has sides that are multiples of {multiple}: lower that")

    def nearest(self, aspects: Sequence[float]) -> np.ndarray:
        """The bucket of each picture by its width over height: int64, an index of `shapes`."""
        own = np.log([width / height for height, width in self.shapes])
        return np.abs(np.log(aspects)[:, None] - own).argmin(axis=1)


@dataclass(frozen=True)
class BucketOrder:
    """Order of an epoch in which each run of `batch` positions lies in one bucket.

    Every picture comes; the last run of a bucket is filled up with those that its first began with.

    Attributes:
        bucket: of each picture.
        batch: samples of all ranks a step.
    """

    bucket: np.ndarray
    batch: int

    @property
    def size(self) -> int:
        """Positions an epoch."""
        return sum(-(-int(count) // self.batch) for count in np.bincount(self.bucket)) * self.batch

    def __call__(self, seed: int, epoch: int, size: int) -> np.ndarray:
        assert size == self.size
        order = keyed.permutation(seed, epoch, len(self.bucket))
        sorted_by_bucket = [order[self.bucket[order] == bucket] for bucket in np.unique(self.bucket)]
        runs = np.concatenate([self._runs(own) for own in sorted_by_bucket])
        return runs[keyed.permutation(seed, epoch, len(runs), stream="runs")].reshape(-1)

    def _runs(self, own: np.ndarray) -> np.ndarray:
        return np.resize(own, (-(-len(own) // self.batch), self.batch))
