"""Distances to nearest pictures in feature space, a block of rows at a time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

ROWS_AT_ONCE = 1024  # bounds the memory of one block of distances


def distances_to(
    points: Float[Tensor, "n d"], others: Float[Tensor, "m d"], *, count: int
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Euclidean distances to the nearest others, nearest first, and their rows; float64."""
    blocks = [
        torch.cdist(rows, others.double()).topk(count, dim=1, largest=False)
        for rows in points.double().split(ROWS_AT_ONCE)
    ]
    return torch.cat([block.values for block in blocks]), torch.cat([block.indices for block in blocks])


def radii(points: Float[Tensor, "n d"], *, neighbours: int) -> Float[Tensor, "n"]:
    """Distance of each point to its k-th nearest other one, float64.

    Raises:
        ValueError: no more points than neighbours.
    """
    if len(points) <= neighbours:
        raise ValueError(
            f"balls that reach to the neighbour number {neighbours} need more than {neighbours} pictures, "
            f"got {len(points)}"
        )
    return distances_to(points, points, count=neighbours + 1)[0][:, -1]  # the first is the point itself


def balls_around(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radius: Float[Tensor, "m"]
) -> Int[Tensor, "n"]:
    """How many of the balls each point lies in, their surface included."""
    blocks = points.double().split(ROWS_AT_ONCE)
    return torch.cat([(torch.cdist(rows, centres.double()) <= radius).sum(1) for rows in blocks])
