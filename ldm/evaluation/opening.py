"""From a config to an evaluator: real pictures looked at, networks and measures ready."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from ldm.checkpoints.bundle import Bundle
from ldm.data.pictures import PictureDataset
from ldm.evaluation.gallery import Gallery, observers_of
from ldm.evaluation.measure import Evaluator, round_trip
from ldm.evaluation.protocol import Protocol, describe
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.picture_metric import PictureMetric
from ldm.pipeline import TextToImage


def open_evaluator(
    config: Mapping[str, Any],
    bundle: Bundle,
    pipeline: TextToImage,
    *,
    extractor: FeatureExtractor,
    metrics: Mapping[str, PictureMetric],
) -> Evaluator:
    """The evaluator of a resolved config.

    Args:
        config: with `data.root`, `protocol`, `sampler`, `guidance`, `precision`, `batch_size` and `show`.
        bundle: gives its own CLIP as a judge.
        pipeline: gives the codec and the side of the pictures.

    Raises:
        ValueError: a protocol that doesn't fit the data.
    """
    spec = {key: value for key, value in config["protocol"].items() if key != "extractor"}
    if spec["held_out"] not in spec["splits"]:
        raise ValueError(
            f"protocol.held_out={spec['held_out']} is not one of protocol.splits={spec['splits']}"
        )
    splits = {
        name: PictureDataset(config["data"]["root"], split=name, size=pipeline.size)
        for name in spec["splits"]
    }
    protocol = Protocol.of(
        spec,
        sampler=describe(config["sampler"]),
        guidance=describe(config["guidance"]),
        precision=config["precision"],
        size=pipeline.size,
        data=splits[spec["held_out"]].index.sha256,
        features=extractor.identity,
    )
    observers = observers_of(bundle, pipeline.codec, extractor)
    return Evaluator(
        protocol=protocol,
        metrics=metrics,
        gallery=Gallery(splits, observers=observers),
        observers=observers,
        round_trip=partial(round_trip, pipeline.codec),
        batch_size=config["batch_size"],
        show=config["show"],
    )
