"""Pictures, features, numbers: one pass over a set feeds every metric, which is then taken of references."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import UserError
from ldm.evaluation.captions import ELSEWHERE, Caption, CaptionSet, Request, requests_for
from ldm.evaluation.feature_pass import Draw, FeaturePass, Observers, Seen, batched, parts_of
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.ranks import Ranks
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.reference_statistics import Statistics
from ldm.evaluation.result_types import Row, SetResult
from ldm.evaluation.showing import closest_pairs, first_captions
from ldm.metrics.mmap_tables import store_tables
from ldm.metrics.picture_metric import Copies, Observed, PictureMetric, Reference, Scores, score
from ldm.randomness.seeds import check_seed


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures pictures from anywhere under one protocol, against one gallery.

    Attributes:
        captions: of each set, by its name.
        metrics: by the names that the caption sets use.
        statistics: the reference where it is a file: the gallery is then empty, and a Frechet distance is all
            that can be taken against it.
        round_trip: pictures through the autoencoder and back, uint8 to uint8; null where there is none.
        params: of the denoiser that is measured; null where it isn't known.
        ranks: the processes that measure together; all of them must call `measure`.
        show: captions of each set kept for the figures.
    """

    protocol: Protocol
    captions: Mapping[str, Sequence[Caption]]
    metrics: Mapping[str, PictureMetric]
    gallery: ReferenceSet
    observers: Observers
    statistics: Statistics | None = None
    round_trip: Callable[[Tensor], Tensor] | None = None
    params: int | None = None
    ranks: Ranks = field(default_factory=Ranks)
    show: int = 8
    progress: bool = True

    def measure(self, draw: Draw, caption_set: CaptionSet) -> SetResult:
        """Generates and measures the pictures of a set, once for each of the protocol's seeds.

        Raises:
            UserError: an unknown metric, or fewer pictures than one wants that isn't in the set's `few`.
        """
        metrics, skipped = self._available(caption_set)
        few = self._too_few(caption_set, metrics)
        count = self._count(caption_set)
        floor = self._floor(metrics, count)  # before any picture is generated: too few are refused now
        started = time.perf_counter()
        runs = [self._run(draw, caption_set, metrics, repeat) for repeat in range(self.protocol.seeds)]
        seconds = time.perf_counter() - started
        scores = [self._score(metrics, seen.observed) for _, seen in runs]
        requests, seen = runs[0]
        copies = self._copies(metrics, seen.observed)
        references = self._references(metrics, requests[:: caption_set.samples])
        if floor:
            references["floor"] = floor
        rows = [
            Row(
                set=caption_set.name,
                metric=name,
                **spread([one[key][name] for one in scores]),
                images=count,
                seeds=self.protocol.seeds,
                few=key in few,
                foreign=self._is_foreign(metric),
                **{kind: found.get(key, {}).get(name) for kind, found in references.items()},
                nfe=self.protocol.nfe,
                seconds=round(seconds, 4),
                params=self.params,
                protocol=self.protocol.hash,
                reading=metric.reading,
            )
            for key, metric in metrics.items()
            for name in scores[0][key]
        ]
        shown = {"count": self.show, "batch_size": self.protocol.batch_size}
        return SetResult(
            name=caption_set.name,
            rows=rows,
            shown=first_captions(requests, seen, self.gallery, samples=caption_set.samples),
            closest=copies and closest_pairs(copies, draw, requests, self.gallery, **shown),
            floor_images=len(self._halves(count)[0]) if floor else 0,
            images=count,
            seeds=(requests[0].seed, runs[-1][0][-1].seed),
            repeats=len(runs),
            seconds=seconds,
            skipped=skipped,
        )

    def check(self) -> None:
        """Refuses what `measure` would refuse, for all sets, before the first picture is generated.

        Raises:
            UserError: as `measure`.
        """
        for each in self.protocol.sets:
            self._too_few(each, self._available(each)[0])
            last = self.protocol.seed_base + self.protocol.seeds * self._count(each) - 1
            check_seed(last, f"seed_base={self.protocol.seed_base}: the last seed of set {each.name!r}")

    def requests(self, caption_set: CaptionSet, *, repeat: int = 0) -> list[Request]:
        """The pictures of a set, with the seeds of one of its repeats."""
        captions = self.captions[caption_set.name]
        start = self.protocol.seed_base + repeat * len(captions) * caption_set.samples
        return requests_for(captions, samples=caption_set.samples, seed_base=start, folder=caption_set.name)

    def _count(self, caption_set: CaptionSet) -> int:
        """Pictures of a set, for each seed."""
        return len(self.captions[caption_set.name]) * caption_set.samples

    def _too_few(self, caption_set: CaptionSet, metrics: Mapping[str, PictureMetric]) -> set[str]:
        real = self.gallery.count if self.statistics is None else self.statistics.count
        return caption_set.too_few(metrics, generated=self._count(caption_set), real=real)

    def _available(self, caption_set: CaptionSet) -> tuple[dict[str, PictureMetric], list[str]]:
        unknown = set(caption_set.metrics) - set(self.metrics)
        if unknown:
            raise UserError(
                f"caption set {caption_set.name!r} asks for metric {sorted(unknown)[0]!r}, which is not "
                f"in the config's metric: choose it there, one of conf/metric"
            )
        wanted = {name: self.metrics[name] for name in caption_set.metrics}
        able = {name: metric for name, metric in wanted.items() if self._able(metric)}
        return able, sorted(set(wanted) - set(able))

    def _able(self, metric: PictureMetric) -> bool:
        """Whether its networks are there, and what it holds pictures against."""
        held_against = self.statistics is None or not metric.against_real or metric.reference is not None
        return held_against and {*metric.needs} <= self.observers.names

    def _is_foreign(self, metric: PictureMetric) -> bool:
        """Whether it was taken against statistics of unknown preparation."""
        return (
            self.statistics is not None
            and self.statistics.preparation is None
            and metric.reference is not None
        )

    @property
    def _pass(self) -> FeaturePass:
        return FeaturePass(
            observers=self.observers,
            batch_size=self.protocol.batch_size,
            ranks=self.ranks,
            folder=self.gallery.folder,
            progress=self.progress,
        )

    def _run(
        self, draw: Draw, caption_set: CaptionSet, metrics: Mapping[str, PictureMetric], repeat: int
    ) -> tuple[list[Request], Seen]:
        requests = self.requests(caption_set, repeat=repeat)
        title = caption_set.name if self.protocol.seeds == 1 else f"{caption_set.name}, {repeat + 1}"
        keep = 0 if repeat else self.show * caption_set.samples
        seen = self._pass(draw, requests, wanted=needs(metrics), keep=keep, title=f"{title} captions")
        return requests, seen

    def _score(self, metrics: Mapping[str, PictureMetric], observed: Observed) -> Scores:
        return score(metrics, real=self.gallery.observed(), generated=parts_of(observed))

    def _copies(self, metrics: Mapping[str, PictureMetric], observed: Observed) -> Copies | None:
        """The nearest pairs, of the first metric that judges any."""
        sides = observed.features, self.gallery.features
        return next((found for each in metrics.values() if (found := each.copies_in(*sides))), None)

    def _floor(self, metrics: Mapping[str, PictureMetric], count: int) -> Scores:
        """The metrics of real pictures against others."""
        asked = asking(metrics, "floor")
        if not asked or self.gallery.count < 2:
            return {}
        some, others = self._halves(count)
        return score(asked, real=self.gallery.observed(others), generated=self.gallery.observed(some))

    def _references(
        self, metrics: Mapping[str, PictureMetric], requests: Sequence[Request]
    ) -> dict[Reference, Scores]:
        """The metrics of the right pictures and of their round trip, or of as many real ones."""
        found: dict[Reference, Scores] = {}
        if any(request.row == ELSEWHERE for request in requests):
            found["real"] = self._any_real(asking(metrics, "real"), len(requests))
            return found
        if asked := asking(metrics, "real"):
            found["real"] = self._score(asked, self._right(asked, requests))
        if self.round_trip is not None and (asked := asking(metrics, "ceiling")):
            found["ceiling"] = self._score(
                asked, self._pass(self._round_trips, requests, wanted=needs(asked)).observed
            )
        return found

    def _any_real(self, metrics: Mapping[str, PictureMetric], count: int) -> Scores:
        """What holds pictures against nothing, of as many real ones; of fewer there is no such number."""
        held = self.gallery.features.keys()
        asked = {
            name: metric
            for name, metric in metrics.items()
            if not metric.against_real and {*metric.needs} <= held
        }
        if not asked or self.gallery.count < count:
            return {}
        return score(asked, real=(), generated=self.gallery.observed(sorted(self._shuffled()[:count])))

    def _halves(self, count: int) -> tuple[list[int], list[int]]:
        """As many real pictures as were drawn and as many others, or two halves of all."""
        order = self._shuffled()
        size = min(count, len(order) // 2)
        return sorted(order[:size]), sorted(order[size : 2 * size])

    def _shuffled(self) -> list[int]:
        """Numbers of all real pictures, in an order that the protocol alone decides."""
        seed = self.protocol.caption_seed
        rows = range(self.gallery.count)
        return sorted(rows, key=lambda row: hashlib.blake2b(f"{seed}/floor/{row}".encode()).digest())

    def _round_trips(self, requests: Sequence[Request]) -> UInt8[Tensor, "b 3 h w"]:
        assert self.round_trip is not None
        return self.round_trip(self.gallery.pictures([request.row for request in requests])).cpu()

    def _right(self, metrics: Mapping[str, PictureMetric], requests: Sequence[Request]) -> Observed:
        rows = torch.tensor([request.row for request in requests])
        reader = self.observers.only(needs(metrics))
        prompts = [request.prompt for request in requests]
        texts = (reader.read(part) for part in batched(prompts, self.protocol.batch_size))
        return Observed(
            features=self.gallery.picked(rows) | store_tables(texts, folder=self.gallery.folder),
            rows=rows,
            captions=torch.tensor([request.caption for request in requests]),
        )


def needs(metrics: Mapping[str, PictureMetric]) -> set[str]:
    """Names of the features that any of the metrics reads."""
    return {name for metric in metrics.values() for name in metric.needs}


def asking(metrics: Mapping[str, PictureMetric], reference: Reference) -> dict[str, PictureMetric]:
    """The metrics that a reference says something about."""
    return {name: metric for name, metric in metrics.items() if reference in metric.references}


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and standard deviation of a number over the seeds."""
    return {"value": mean(values), "sd": stdev(values) if len(values) > 1 else None}
