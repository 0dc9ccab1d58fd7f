"""Nearest pictures in feature space, found with a block of rows against a block of others at a time."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.mmap_tables import Rows, blocks


def nearest(queries: Float[Tensor, "q d"], gallery: Rows, *, count: int = 1) -> Int[Tensor, "q k"]:
    """Rows of the gallery nearest to each query by cosine, nearest first."""
    unit = F.normalize(queries.float(), dim=1)
    cosines = torch.cat([unit @ F.normalize(block.float(), dim=1).T for block in blocks(gallery)], dim=1)
    return cosines.topk(min(count, len(gallery)), dim=1).indices


def distances_to(
    points: Rows, others: Rows, *, count: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Euclidean distances to the nearest others, nearest first, and their rows; float64."""
    found = [_nearest(rows, others, count) for rows in blocks(points)]
    return torch.cat([distances for distances, _ in found]), torch.cat([rows for _, rows in found])


def radii(points: Rows, *, neighbours: int) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other one, float64.

    Raises:
        UserError: no more points than neighbours.
    """
    if len(points) <= neighbours:
        raise UserError(
            f"k={neighbours} nearest neighbours need more than {neighbours} pictures, got {len(points)}"
        )
    return distances_to(points, points, count=neighbours + 1)[0][:, -1]  # the first is the point itself


def balls_around(points: Rows, centres: Rows, radius: Float[Tensor, "m"]) -> Int[Tensor, "n"]:
    """How many of the balls each point lies in, their surface included."""
    counts = [
        sum((gaps <= radius[start : start + gaps.shape[1]]).sum(1) for start, gaps in _gaps(rows, centres))
        for rows in blocks(points)
    ]
    return torch.cat(counts)


def _nearest(
    points: Float[Tensor, "b d"], others: Rows, count: int
) -> tuple[Float[Tensor, "b k"], Int[Tensor, "b k"]]:
    """The nearest others of one block of points."""
    distances, rows = points.new_empty(len(points), 0), torch.empty(len(points), 0, dtype=torch.long)
    rows = rows.to(points.device)
    for start, gaps in _gaps(points, others):
        numbers = torch.arange(start, start + gaps.shape[1], device=rows.device).expand_as(gaps)
        gaps, numbers = torch.cat([distances, gaps], dim=1), torch.cat([rows, numbers], dim=1)
        distances, places = gaps.topk(min(count, gaps.shape[1]), dim=1, largest=False)
        rows = numbers.gather(1, places)
    return distances, rows


def _gaps(points: Float[Tensor, "b d"], others: Rows) -> Iterator[tuple[int, Float[Tensor, "b c"]]]:
    """Distances of points to each block of others, and the number of the block's first row."""
    start = 0
    for block in blocks(others):
        yield start, torch.cdist(points, block)
        start += len(block)
