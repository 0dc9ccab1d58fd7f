"""The work of `python -m ldm.evaluate` after its config has been checked: measures a subject or a sweep.

Numbers, report and figures of a bundle or of pictures, measured under a protocol, go into a new folder.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm import UserError
from ldm.checkpoints.provenance import config_hash, published
from ldm.evaluation.feature_pass import Observers, Ranks, batched
from ldm.evaluation.figures import save_figures, save_sweep
from ldm.evaluation.measure import Evaluator, needs
from ldm.evaluation.pictures import BATCH, RESIZE, PictureFolder, Pictures, Subject, picture_subject
from ldm.evaluation.protocol import Caption, Protocol, Request, caption_sets, describe
from ldm.evaluation.reference_set import FeatureCache, ReferenceSet
from ldm.evaluation.reference_statistics import Preparation, Statistics
from ldm.evaluation.report import csv_text, report, sweep_report
from ldm.evaluation.results import (
    FILE_NAME,
    Row,
    SetResult,
    Training,
    bundles_of,
    check_alike,
    numbers_of,
    results,
    together,
    write_results,
)
from ldm.io.writing import new_folder, write
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.frechet import FrechetDistance, gaussian_of
from ldm.metrics.picture_metric import PictureMetric

NAMED = ("reference", "statistics")  # options that stand for the real pictures
NETWORKS = ("extractors", "distances")  # keys of a protocol's node that hold what is built

Point = Mapping[str, Any]  # of a sweep: axis -> value, None for what the command or the bundle has
Extractors = Mapping[str, FeatureExtractor]
Metrics = Mapping[str, PictureMetric]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A resolved config, with the device and the processes that carry it out."""

    options: Mapping[str, Any]  # plain data, `metric` reduced to what the protocol's sets name
    build: Callable[[Any], Any]  # builds a `_target_` tree, again for each subject: metrics hold state
    device: torch.device  # where networks run
    ranks: Ranks  # the processes that measure together; the first one writes

    def list_prompts(self, path: Path) -> int:
        """Writes the list of what the protocol generates; returns how many pictures that is."""
        spec = self._spec
        reference_set = ReferenceSet(self._splits(self._data_size), observers=Observers())
        requests = []
        for each in caption_sets(spec):
            captions = reference_set.captions(each, seed=spec["caption_seed"])
            requests += each.requests(captions, seed_base=spec["seed_base"])
        return write_prompts(path, requests)

    def write_statistics(self, path: Path) -> Statistics:
        """Writes mean and covariance of the real pictures' features that the Frechet distance reads.

        Raises UserError: a protocol with no Frechet distance or with several.
        """
        extractors, metrics = self._instruments()
        found = needs(each for each in metrics.values() if each.accepts_statistics)
        if len(found) != 1:
            raise UserError(
                f"protocol {self._spec['name']!r} has Frechet distances in "
                f"{', '.join(sorted(found)) or 'nothing'}, and a file of statistics is of one kind: leave "
                f"one such metric in its sets"
            )
        (features,) = found
        observers = Observers(pictures=extractors).only(found)
        reference_set = self._reference_set(self._data_size, observers, wanted=found)
        statistics = Statistics(
            gaussian=gaussian_of(part.features[features] for part in reference_set.observed()),
            features=features,
            count=reference_set.count,
            preparation=preparations(extractors, size=self._data_size)[features],
            of=reference_set.identity(observers),
        )
        if self.ranks.number == 0:
            statistics.write(path)
        return statistics

    def measure(self) -> dict[str, Any]:
        """Measures the subject into the folder `out`; returns the results document.

        Several bundles are measured one after the other and count as trainings of one subject.
        """
        bundles = self._bundles()
        with self._new_folder() as folder:
            found = [self._with(bundle=each)._evaluated(with_autoencoder=True) for each in bundles]
            document, sets = together([each for each, _ in found]), found[0][1]
            if folder is not None:
                kind, path = document["bundle"]["kind"], Path(document["bundle"]["path"])
                log = path.parent / "metrics.jsonl" if kind == "bundle" else None  # of the run it lies in
                write(folder / "report.md", report(document, figures=save_figures(folder, sets, curves=log)))
                write_results(folder / FILE_NAME, document)
        return document

    def sweep(self, points: Sequence[Point], *, samplers: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Measures every point: results, one table, curves; returns the table's lines, one per number.

        A point may name one of the samplers, which are configs.
        """
        lines: list[dict[str, Any]] = []
        with self._new_folder() as folder:
            for number, point in enumerate(points):
                given = {axis: value for axis, value in point.items() if value is not None}
                if "sampler" in given:
                    given["sampler"] = samplers[given["sampler"]]
                document, _ = self._with(**given)._evaluated(with_autoencoder=False)
                shown = {"ruler": document["protocol"]["ruler"]}
                lines += [{**published(point), **numbers_of(row), **shown} for row in document["rows"]]
                if folder is not None:
                    write_results(folder / f"point_{number:03d}.json", document)
            if folder is not None:
                write(folder / "sweep.csv", csv_text([[*lines[0]], *(line.values() for line in lines)]))
                figures = save_sweep(lines, folder, axes=[*points[0]])
                write(folder / "report.md", sweep_report(lines, figures=figures))
        return lines

    def _with(self, **options: Any) -> "Command":
        """The same command with other options."""
        return replace(self, options={**self.options, **options})

    def _bundles(self) -> list[str]:
        """The bundles to measure; where pictures are measured, the one that nothing looks at."""
        if self.options["pictures"] is not None or self.options["real"] is not None:
            return [self.options["bundle"]]
        bundles = bundles_of(self.options["bundle"])
        trainings = []
        for each in bundles if len(bundles) > 1 else ():  # opened here, so that none is refused after hours
            with self._with(bundle=each)._subject() as subject:
                trainings.append(Training(each, subject.sha256, subject.generation))
        check_alike(trainings)
        return bundles

    def _evaluated(self, *, with_autoencoder: bool) -> tuple[dict[str, Any], list[SetResult]]:
        """The results document of one subject, and its sets with their pictures."""
        started = time.perf_counter()
        rows: list[Row] = []
        with self._subject() as subject:
            subject = subject.at(self._spec["size"] or subject.size)
            extractors, metrics = self._instruments()
            held_out = self._spec["held_out"] if with_autoencoder and subject.round_trip else None
            # built early, so that a missing file of weights is refused before pictures are generated
            judge = None if held_out is None else self._reconstruction(next(iter(extractors.values())))
            evaluator = self._evaluator(subject, extractors, metrics)
            sets = [evaluator.measure(subject.generate, each) for each in evaluator.protocol.sets]
            if judge is not None:
                pictures = self._split(held_out, subject.size)
                rows = reconstruct(subject.round_trip, pictures, judge, device=self.device)
            document = results(
                protocol=evaluator.protocol,
                subject=subject,
                sets=sets,
                autoencoder=rows,
                config_hash=config_hash(dict(self.options)),
                seconds=time.perf_counter() - started,
                device=self.device,
            )
        return document, sets

    def _evaluator(self, subject: Subject, extractors: Extractors, metrics: Metrics) -> Evaluator:
        """The evaluator of a subject; UserError for a protocol that doesn't fit the data or the subject."""
        options, observers = self.options, Observers.of(extractors) | subject.judges
        statistics = self._statistics(extractors, metrics, subject.size)
        read = [each for each in metrics.values() if each.against_real or each.references]
        reference_set = self._reference_set(subject.size, observers, wanted=needs(read))
        of_pictures = reference_set.identity(Observers(pictures=extractors))
        reference = of_pictures if statistics is None else statistics.of
        splits = [*reference_set.splits.values()]
        protocol = Protocol.of(
            {name: value for name, value in self._spec.items() if name != "size"},
            generation=subject.generation,
            batch_size=subject.batch_size,
            **({} if subject.pictures is None else {"seed_base": 0, "seeds": 1}),
            size=subject.size,
            resize=RESIZE,
            data=splits[0].data_sha256 if splits else reference,
            reference=reference,
            features=tuple(each.identity for each in extractors.values()),
            distances=tuple(map(describe, (options["protocol"].get("distances") or {}).values())),
            measures=tuple(f"{name}: {describe(node)}" for name, node in sorted(options["metric"].items())),
        )
        reference_set.tell_splits(metrics.values())
        captions = {
            each.name: reference_set.captions(each, seed=protocol.caption_seed, measured=subject.pictures)
            for each in protocol.sets
        }
        if self.ranks.number == 0:
            print_cuts(captions, subject, extractors)
        sets = tuple(each.identified(captions[each.name]) for each in protocol.sets)
        evaluator = Evaluator(
            protocol=replace(protocol, sets=sets),
            captions=captions,
            metrics=metrics,
            reference_set=reference_set,
            observers=observers,
            statistics=statistics,
            round_trip=subject.round_trip,
            params=subject.params,
            ranks=self.ranks,
            show=options["show"],
        )
        evaluator.check()
        return evaluator

    @property
    def _spec(self) -> dict[str, Any]:
        """The protocol's node without its networks; where the reference is named, that is its only split."""
        spec = {key: value for key, value in self.options["protocol"].items() if key not in NETWORKS}
        named = next((name for name in NAMED if self.options[name] is not None), None)
        return spec if named is None else spec | {"splits": [named], "held_out": None}

    @property
    def _data_size(self) -> int:
        """Side of real pictures where there is no subject whose size they take."""
        return self._spec["size"] or self.options["data"]["size"]

    def _subject(self) -> AbstractContextManager[Subject]:
        """What is measured: `pictures`, a folder; `real`, a split; else `bundle`."""
        options = self.options
        if (path := options["pictures"]) is not None:
            folder = PictureFolder(path, size=self._spec["size"])
            return nullcontext(picture_subject(folder, path=path))
        if (name := options["real"]) is not None:
            path = f"{options['data']['root']}, split {name}"
            return nullcontext(picture_subject(self._split(name, self._data_size), path=path))
        return self.build(options["parts"]["bundle"])(options, device=self.device)

    def _reference_set(self, size: int, observers: Observers, *, wanted: set[str]) -> ReferenceSet:
        """The reference set of the protocol, with features that are kept in the folder `cache`."""
        splits = self._splits(size)  # first: where there is no data set, no folder is made either
        cache = FeatureCache.at(self.options["cache"], root=self.options["data"]["root"])
        return ReferenceSet(splits, observers=observers, wanted=wanted, cache=cache, ranks=self.ranks)

    def _splits(self, size: int) -> dict[str, Pictures]:
        """All real pictures of the protocol, by split; none where the reference is a file of statistics."""
        if self.options["statistics"] is not None:
            return {}
        if (path := self.options["reference"]) is not None:
            return {"reference": PictureFolder(path, size=size)}
        return {name: self._split(name, size) for name in self._spec["splits"]}

    def _split(self, name: str, size: int) -> Pictures:
        return self.build(self.options["parts"]["split"])(self.options["data"]["root"], split=name, size=size)

    def _instruments(self) -> tuple[Extractors, Metrics]:
        """The protocol's networks, and the metrics that its sets name."""
        extractors = self.build(self.options["protocol"]["extractors"])
        for each in extractors.values():
            each.to(self.device)
        return extractors, self.build(self.options["metric"])

    def _reconstruction(self, extractor: FeatureExtractor) -> Any:
        """The metric of the autoencoder's round trip, with the protocol's distances."""
        built = self.build(self.options["protocol"].get("distances") or {})
        distances = {each.name: each.to(self.device) for each in built.values()}
        return self.build(self.options["parts"]["reconstruction"])(distances=distances, extractor=extractor)

    def _statistics(self, extractors: Extractors, metrics: Metrics, size: int) -> Statistics | None:
        """The reference where it is a file, given to the distances in its features."""
        if (source := self.options["statistics"]) is None:
            return None
        statistics = Statistics.read(Path(source))
        statistics.check(preparations(extractors, size=size), source=source)
        for metric in metrics.values():
            if metric.accepts_statistics and statistics.features in metric.needs:
                metric.reference = statistics.gaussian
        return statistics

    def _new_folder(self) -> AbstractContextManager[Path | None]:
        """The folder to fill, in the first process; the others have none."""
        return new_folder(Path(self.options["out"])) if self.ranks.number == 0 else nullcontext()


def write_prompts(path: Path, requests: Sequence[Request]) -> int:
    """Writes file name, caption and seed of each picture, for any system to generate; counts them.

    The names are those that a folder of pictures is searched for; the seeds are only a proposal.
    """
    rows = [(f"{one.name}.png", one.prompt, one.seed) for one in requests]
    write(path, csv_text([("file", "caption", "seed"), *rows]))
    return len(rows)


def preparations(extractors: Extractors, *, size: int) -> dict[str, Preparation]:
    """How pictures with sides of `size` pixels come to be features, by the features' names."""
    return {
        name: Preparation(network=each.identity, size=size, resize=RESIZE)
        for each in extractors.values()
        for name in each.dims
    }


def print_cuts(captions: Mapping[str, Sequence[Caption]], subject: Subject, extractors: Extractors) -> None:
    """Prints which captions of each set are longer than the model, or a judge that reads them, can take."""
    tokenizers = {"": subject.tokenizer}
    tokenizers |= {f" read by {name}": getattr(each, "tokenizer", None) for name, each in extractors.items()}
    for name, own in captions.items():
        for reader, tokenizer in tokenizers.items():
            if tokenizer and (line := tokenizer.cut_line([each.text for each in own], what="caption")):
                print(f"{name}{reader}: {line}")


def reconstruct(
    through: Callable[[Tensor], Tensor], pictures: Pictures, judge: Any, *, device: torch.device | None = None
) -> list[Row]:
    """The numbers of uint8 pictures that went `through` an autoencoder and back.

    The judge is a `Reconstruction` on the device; its `rfid` or `rfd_<features>` of few pictures is labelled.
    """
    judge.distributed_available_fn = lambda: False  # every process measures all pictures: none are gathered
    few = len(pictures) < FrechetDistance.minimum_images
    bar = tqdm(total=len(pictures), desc="autoencoder", unit="picture")
    with torch.no_grad(), bar:
        for numbers in batched(range(len(pictures)), BATCH):
            originals = torch.stack([pictures.image(number) for number in numbers])
            judge.update(through(originals).to(device), originals.to(device))
            bar.update(len(numbers))
    return [
        Row(
            set="autoencoder",
            metric=name,
            value=float(value),
            per_seed=[[float(value)]],
            higher_is_better=judge.directions[name],
            reading=judge.readings[name],
            images=len(pictures),
            few=few and name.startswith("rf"),
        )
        for name, value in judge.compute().items()
    ]
