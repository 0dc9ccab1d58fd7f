"""Frechet distances of few pictures: refused, or asked for by name and labelled."""

from collections.abc import Mapping

from ldm import UserError
from ldm.evaluation.captions import CaptionSet
from ldm.metrics.frechet import ENOUGH, FrechetDistance
from ldm.metrics.picture_metric import PictureMetric, result_name


def few_results(
    caption_set: CaptionSet, metrics: Mapping[str, PictureMetric], *, drawn: int, real: int | None
) -> set[str]:
    """Names of the results that are of fewer pictures, on either side, than a Frechet distance wants.

    Args:
        metrics: by the names that the set's `few` uses.
        drawn, real: pictures on each side; null where nobody knows how many are real.

    Raises:
        UserError: such a result that `few` doesn't name.
    """
    count = drawn if real is None else min(drawn, real)
    if count >= ENOUGH:
        return set()
    distances = {name: each for name, each in metrics.items() if isinstance(each, FrechetDistance)}
    for name in distances:
        if name not in caption_set.few:
            raise UserError(
                f"caption set {caption_set.name!r} has {count} pictures for {name!r}, which wants {ENOUGH}: "
                f"take more, or name it in the set's few: [{name}] to have it with a label"
            )
    return {result_name("fd", each.features) for each in distances.values()}
