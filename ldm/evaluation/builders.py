"""From a config to what is measured and what measures it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.data.shards import PictureDataset
from ldm.evaluation.captions import Caption, CaptionSet, identified
from ldm.evaluation.feature_cache import FeatureCache
from ldm.evaluation.feature_pass import Observers, readers
from ldm.evaluation.measure import Evaluator
from ldm.evaluation.pictures import RESIZE, PictureFolder, Pictures, Split
from ldm.evaluation.protocol import Protocol, caption_sets, describe, describe_measures
from ldm.evaluation.ranks import Ranks
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.reference_statistics import Preparation, Statistics
from ldm.evaluation.subject import Subject, bundle_subject, picture_subject
from ldm.generators.generator import open_generator
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.picture_metric import PictureMetric
from ldm.tokenizers import cut_line

NAMED = ("reference", "statistics")  # options that stand for the real pictures
OPTIONS = ("sampler", "guidance", "grid", "steps", "scale", "precision")  # of a generator
NETWORKS = ("extractors", "distances")  # keys of a protocol's node that hold what is built


def open_subject(config: Mapping[str, Any], *, device: torch.device) -> Subject:
    """What a resolved config measures: `pictures`, a folder; `real`, a split; else `bundle`.

    Raises:
        UserError: it isn't there, or can't be read.
    """
    subject = _open(config, device)
    return subject.at(config["protocol"]["size"] or subject.size)


def _open(config: Mapping[str, Any], device: torch.device) -> Subject:
    size = config["protocol"]["size"]
    if config["pictures"] is not None:
        folder = PictureFolder(config["pictures"], size=size)
        return picture_subject(folder, path=config["pictures"], size=folder.size)
    if config["real"] is not None:
        split = _split(config, config["real"], size or config["data"]["size"])
        path = f"{config['data']['root']}, split {config['real']}"
        return picture_subject(split, path=path, size=split.pictures.size)
    options = {name: config.get(name) for name in OPTIONS}
    opened = open_generator(Bundle.open(config["bundle"]), **options).to(device)
    return bundle_subject(opened, device=device, batch_size=config["batch_size"])


def open_evaluator(
    config: Mapping[str, Any],
    subject: Subject,
    *,
    extractors: Mapping[str, FeatureExtractor],
    metrics: Mapping[str, PictureMetric],
    ranks: Ranks,
) -> Evaluator:
    """The evaluator of a resolved config for a subject.

    Args:
        config: with `data.root`, `reference`, `statistics`, `protocol`, `metric`, `cache` and `show`.
        extractors: of the protocol, by name.

    Raises:
        UserError: a protocol that doesn't fit the data or the subject.
    """
    spec = spec_of(config)
    splits = real_splits(config, spec, subject.size)
    statistics = _statistics(config, extractors, metrics, subject.size)
    observers = _observers(extractors, subject)
    gallery = ReferenceSet(
        splits,
        observers=observers,
        wanted=wanted_features(caption_sets(spec), metrics),
        cache=FeatureCache.at(config["cache"], root=config["data"]["root"]),
        ranks=ranks,
    )
    looked = Observers(pictures=extractors)
    reference = gallery.identity(looked) if statistics is None else statistics.of
    data = _identity(next(iter(splits.values()))) if splits else reference
    protocol = _protocol(config, subject, extractors=extractors, data=data, reference=reference)
    gallery.tell_splits(metrics.values())
    captions = {
        each.name: gallery.captions(each, seed=protocol.caption_seed, measured=subject.pictures)
        for each in protocol.sets
    }
    if ranks.number == 0:
        tell_cuts(captions, subject, extractors)
    sets = tuple(identified(each, captions[each.name]) for each in protocol.sets)
    evaluator = Evaluator(
        protocol=replace(protocol, sets=sets),
        captions=captions,
        metrics=metrics,
        gallery=gallery,
        observers=observers,
        statistics=statistics,
        round_trip=subject.round_trip,
        params=subject.params,
        ranks=ranks,
        show=config["show"],
    )
    evaluator.check()
    return evaluator


def tell_cuts(
    captions: Mapping[str, Sequence[Caption]], subject: Subject, extractors: Mapping[str, FeatureExtractor]
) -> None:
    """Prints which captions of each set are longer than the model, or a judge that reads them, can take."""
    tokenizers = {"": subject.tokenizer}
    tokenizers |= {f" read by {name}": getattr(each, "tokenizer", None) for name, each in extractors.items()}
    for name, own in captions.items():
        for reader, tokenizer in tokenizers.items():
            if tokenizer and (line := cut_line(tokenizer, [each.text for each in own], what="caption")):
                print(f"{name}{reader}: {line}")


def _protocol(
    config: Mapping[str, Any],
    subject: Subject,
    *,
    extractors: Mapping[str, FeatureExtractor],
    data: str,
    reference: str,
) -> Protocol:
    """The protocol whose captions are still to be drawn: all else that the numbers depend on."""
    spec = spec_of(config)
    del spec["size"]
    return Protocol.of(
        spec,
        generation=subject.generation,
        batch_size=subject.batch_size,
        **({} if subject.pictures is None else {"seed_base": 0, "seeds": 1}),
        size=subject.size,
        resize=RESIZE,
        data=data,
        reference=reference,
        features=tuple(each.identity for each in extractors.values()),
        distances=tuple(map(describe, (config["protocol"].get("distances") or {}).values())),
        measures=describe_measures(caption_sets(spec), config["metric"]),
    )


def _observers(extractors: Mapping[str, FeatureExtractor], subject: Subject) -> Observers:
    """The protocol's networks and the subject's own."""
    return Observers(
        pictures={**extractors, **subject.judges.pictures},
        texts={**readers(extractors.values()), **subject.judges.texts},
    )


def _identity(pictures: Pictures) -> str:
    return pictures.pictures.index.sha256 if isinstance(pictures, Split) else pictures.sha256


def spec_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol's node without its networks; where the reference is named, that is its only split."""
    spec = {key: value for key, value in config["protocol"].items() if key not in NETWORKS}
    named = next((name for name in NAMED if config[name] is not None), None)
    return spec if named is None else spec | {"splits": [named], "held_out": None}


def real_splits(config: Mapping[str, Any], spec: Mapping[str, Any], size: int) -> dict[str, Pictures]:
    """All real pictures of a protocol, by split; none where the reference is a file of statistics."""
    if config["statistics"] is not None:
        return {}
    if config["reference"] is not None:
        return {"reference": PictureFolder(config["reference"], size=size)}
    return {name: _split(config, name, size) for name in spec["splits"]}


def preparations(extractors: Mapping[str, FeatureExtractor], *, size: int) -> dict[str, Preparation]:
    """How pictures come to be features, by the features' names.

    Args:
        size: side of the pictures in pixels.
    """
    return {
        name: Preparation(network=each.identity, size=size, resize=RESIZE)
        for each in extractors.values()
        for name in each.dims
    }


def open_statistics(
    config: Mapping[str, Any],
    *,
    extractors: Mapping[str, FeatureExtractor],
    metrics: Mapping[str, PictureMetric],
    ranks: Ranks,
) -> Statistics:
    """Those of the real pictures, in the features that the protocol's Frechet distance is taken in.

    Raises:
        UserError: a protocol with no Frechet distance or with several.
    """
    spec = spec_of(config)
    size = spec["size"] or config["data"]["size"]
    used = {name for each in caption_sets(spec) for name in each.metrics}
    distances = (each for name, each in metrics.items() if name in used)
    found = {name for each in distances if each.accepts_statistics for name in each.needs}
    if len(found) != 1:
        raise UserError(
            f"protocol {spec['name']!r} has Frechet distances in {', '.join(sorted(found)) or 'nothing'}, "
            f"and a file of statistics is of one kind: leave one such metric in its sets"
        )
    (features,) = found
    networks = Observers(pictures=extractors).only(found)
    gallery = ReferenceSet(
        real_splits(config, spec, size),
        observers=networks,
        wanted=found,
        cache=FeatureCache.at(config["cache"], root=config["data"]["root"]),
        ranks=ranks,
    )
    preparation = preparations(networks.pictures, size=size)[features]
    return Statistics.of_gallery(gallery, features, preparation=preparation, of=gallery.identity(networks))


def _statistics(
    config: Mapping[str, Any],
    extractors: Mapping[str, FeatureExtractor],
    metrics: Mapping[str, PictureMetric],
    size: int,
) -> Statistics | None:
    """The reference where it is a file, given to the distances in its features."""
    if config["statistics"] is None:
        return None
    statistics = Statistics.read(Path(config["statistics"]))
    statistics.check(preparations(extractors, size=size), source=config["statistics"])
    for metric in metrics.values():
        if metric.accepts_statistics and statistics.features in metric.needs:
            metric.reference = statistics.gaussian
    return statistics


def held_out(config: Mapping[str, Any], protocol: Protocol) -> Split | None:
    """The pictures that an autoencoder is measured on."""
    return None if protocol.held_out is None else _split(config, protocol.held_out, protocol.size)


def wanted_features(sets: tuple[CaptionSet, ...], metrics: Mapping[str, PictureMetric]) -> set[str]:
    """Names of the features of real pictures that the sets' metrics read."""
    used = (metrics[name] for each in sets for name in each.metrics if name in metrics)
    return {name for each in used if each.against_real or each.references for name in each.needs}


def _split(config: Mapping[str, Any], name: str, size: int) -> Split:
    return Split(PictureDataset(config["data"]["root"], split=name, size=size))
