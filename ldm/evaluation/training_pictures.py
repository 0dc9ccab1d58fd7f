"""Which of the real pictures a measure of memorisation looks for copies of."""

from collections.abc import Mapping

from ldm.evaluation.reference_set import Gallery
from ldm.metrics.memorisation import Memorisation
from ldm.metrics.picture_metric import PictureMetric


def name_training_pictures(metrics: Mapping[str, PictureMetric], gallery: Gallery) -> None:
    """Tells each measure of memorisation the rows of its split; where there is no such split, all count."""
    for metric in metrics.values():
        if isinstance(metric, Memorisation):
            metric.seen = gallery.rows_of(metric.split) if metric.split in gallery.splits else None
