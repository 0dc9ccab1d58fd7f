"""What `python -m ldm.evaluate` does once its config has been checked: it measures a subject, or a sweep."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ldm.checkpoints.provenance import config_hash
from ldm.construct import locate
from ldm.evaluation.builders import (
    held_out,
    open_evaluator,
    open_statistics,
    open_subject,
    real_splits,
    spec_of,
)
from ldm.evaluation.feature_pass import Observers
from ldm.evaluation.figures import draw_sweep
from ldm.evaluation.prompts import write_prompts
from ldm.evaluation.protocol import caption_sets
from ldm.evaluation.ranks import Ranks
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.reference_statistics import Statistics
from ldm.evaluation.report import sweep_report, write_report
from ldm.evaluation.result_types import Row, SetResult
from ldm.evaluation.results import results, write_results
from ldm.evaluation.round_trip import reconstruct
from ldm.evaluation.subject import Subject
from ldm.evaluation.sweep import Point, lines_of, points, write_table
from ldm.io.writing import new_folder, write
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.picture_metric import PictureMetric

Options = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A resolved config with what it is carried out by.

    Attributes:
        options: the config as plain data.
        build: makes objects of a `_target_` tree; extractors and metrics are built anew for each subject.
        sampler_node: the config of a sampler by its name, for sweeps.
        device: where networks run.
        ranks: the processes that measure together; the first one writes.
    """

    options: Options
    build: Callable[[Any], Any]
    sampler_node: Callable[[str], Any]
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    def list_prompts(self, path: Path) -> int:
        """Writes the csv of what the protocol draws; returns how many pictures that is."""
        spec = spec_of(self.options)
        size = spec["size"] or self.options["data"]["size"]
        gallery = ReferenceSet(real_splits(self.options, spec, size), observers=Observers(pictures={}))
        return write_prompts(
            path,
            gallery,
            caption_sets(spec),
            caption_seed=spec["caption_seed"],
            seed_base=spec["seed_base"],
        )

    def write_statistics(self, path: Path) -> Statistics:
        """Writes mean and covariance of the real pictures' features into a file."""
        extractors, metrics = self._instruments(self.options)
        found = open_statistics(self.options, extractors=extractors, metrics=metrics, ranks=self.ranks)
        if self.ranks.number == 0:
            found.write(path)
        return found

    def measure(self) -> dict[str, Any]:
        """Measures the subject into the folder `out`; returns the results document."""
        with self._new_folder() as folder:
            with averaged(self.options) as options:
                document, sets, subject = self._document(options, autoencoder=True)
            if folder is not None:
                write_report(folder, document, sets, curves=metrics_log(subject))
        return document

    def sweep(self) -> list[dict[str, Any]]:
        """Measures every point of the sweep: results, one table, curves; returns the table's lines."""
        lines: list[dict[str, Any]] = []
        with self._new_folder() as folder:
            for number, point in enumerate(points(self.options["sweep"])):
                with averaged(self._at(point)) as options:
                    document, sets, _ = self._document(options)
                rows = [row for each in sets for row in each.rows]
                lines += lines_of(point, rows, ruler=document["protocol"]["ruler"])
                if folder is not None:
                    write_results(folder / f"point_{number:03d}.json", document)
            if folder is not None:
                write_table(folder / "sweep.csv", lines)
                text = sweep_report(lines, figures=draw_sweep(lines, folder))
                write(folder / "report.md", text)
        return lines

    def _at(self, point: Point) -> dict[str, Any]:
        """The options at a point of the sweep."""
        set_there = {name: value for name, value in point.items() if value is not None}
        if "sampler" in set_there:
            set_there["sampler"] = self.sampler_node(set_there["sampler"])
        return {**self.options, **set_there}

    def _document(
        self, options: Options, *, autoencoder: bool = False
    ) -> tuple[dict[str, Any], list[SetResult], Subject]:
        started = time.perf_counter()
        subject = open_subject(options, device=self.device)
        extractors, metrics = self._instruments(options)
        distances = self._distances(options) if autoencoder and subject.round_trip else []
        evaluator = open_evaluator(options, subject, extractors=extractors, metrics=metrics, ranks=self.ranks)
        sets = [evaluator.measure(subject.draw, each) for each in evaluator.protocol.sets]
        pictures = held_out(options, evaluator.protocol) if autoencoder else None
        rows: list[Row] = []
        if subject.round_trip and pictures:
            rows = reconstruct(
                subject.round_trip,
                pictures,
                extractor=next(iter(extractors.values())),
                distances=distances,
                device=self.device,
            )
        document = results(
            protocol=evaluator.protocol,
            subject=subject,
            sets=sets,
            autoencoder=rows,
            config_hash=config_hash(dict(options)),
            seconds=time.perf_counter() - started,
            device=self.device,
        )
        return document, sets, subject

    def _instruments(self, options: Options) -> tuple[dict[str, FeatureExtractor], dict[str, PictureMetric]]:
        """The protocol's networks, and the metrics that its sets name."""
        extractors = self.build(options["protocol"]["extractors"])
        for each in extractors.values():
            each.to(self.device)
        named = {name for each in options["protocol"]["sets"] for name in each["metrics"]}
        return extractors, self.build(
            {name: node for name, node in options["metric"].items() if name in named}
        )

    def _distances(self, options: Options) -> list[Any]:
        """What the round trip is measured by; built early, so that a missing file is told early."""
        built = self.build(options["protocol"].get("distances") or {})
        return [each.to(self.device) for each in built.values()]

    @contextmanager
    def _new_folder(self) -> Iterator[Path | None]:
        """The folder to fill, in the first process; the others have none."""
        with new_folder(Path(self.options["out"])) if self.ranks.number == 0 else nullcontext() as folder:
            yield folder


@contextmanager
def averaged(options: Options) -> Iterator[Options]:
    """The options with the bundle of the average that `ema_length` asks for; as they are where it is null."""
    if options["ema_length"] is None:
        yield options
        return
    # by its name: training states and networks concern no other evaluation
    bundle_of_length = locate("ldm.generators.denoiser_writer.bundle_of_length", allowed=("ldm.generators.",))
    with TemporaryDirectory() as folder:
        bundle = bundle_of_length(options["bundle"], Path(folder) / "bundle", length=options["ema_length"])
        yield {**options, "bundle": str(bundle)}


def metrics_log(subject: Subject) -> Path | None:
    """The log of the run that a bundle lies in, if it does."""
    return Path(subject.path).parent / "metrics.jsonl" if subject.kind == "bundle" else None
