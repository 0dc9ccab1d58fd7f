"""From tables of features to numbers: both sides fed to every metric."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev

import torch

from ldm import UserError
from ldm.metrics.picture_metric import Observed, PictureMetric


def spread(numbers: Sequence[Mapping[str, float]], name: str) -> dict[str, float | None]:
    """Mean and standard deviation of a number over the seeds."""
    found = [each[name] for each in numbers]
    return {"value": mean(found), "sd": stdev(found) if len(found) > 1 else None}


def score(
    metrics: Mapping[str, PictureMetric], *, real: Iterable[Observed], generated: Iterable[Observed]
) -> dict[str, float]:
    """Feeds both sides to every metric, a part at a time, and gathers what they say, by name.

    Nothing is exchanged between processes: each has all the features already.

    Raises:
        UserError: two metrics with one name for their result, or a result that is not finite.
    """
    for metric in metrics.values():
        metric.reset()
        metric.distributed_available_fn = lambda: False
    for batches, is_real in ((real, True), (generated, False)):
        for batch in batches:
            for metric in metrics.values():
                metric.update(batch, real=is_real)
    values: dict[str, float] = {}
    for metric in metrics.values():
        for name, value in metric.compute().items():
            if name in values:
                raise UserError(f"two metrics call their result {name!r}: give one of them other features")
            values[name] = float(value)
    broken = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    if broken:
        raise UserError(f"metric {broken[0]!r} came out as {values[broken[0]]}: nothing is written")
    return values
