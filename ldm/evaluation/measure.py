"""Pictures, features, numbers: one pass over a set feeds every metric, beside the references of its value."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import UserError
from ldm.evaluation.feature_pass import FeaturePass, Generate, Observers, Ranks, batched, generated, parts_of
from ldm.evaluation.protocol import ELSEWHERE, Caption, CaptionSet, Protocol, Request
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.reference_statistics import Statistics
from ldm.evaluation.results import Block, Row, SetResult
from ldm.metrics.mmap_tables import nearest, store_tables, unit_rows
from ldm.metrics.picture_metric import Copies, Observed, PictureMetric, Reference, Scores, score
from ldm.randomness.seeds import check_seed

Metrics = Mapping[str, PictureMetric]  # by the names that caption sets use


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures pictures from anywhere under one protocol, against one reference set."""

    protocol: Protocol
    captions: Mapping[str, Sequence[Caption]]  # of each set, by its name
    metrics: Metrics
    reference_set: ReferenceSet
    observers: Observers
    statistics: Statistics | None = None  # the reference where it is a file: the reference set is then empty
    round_trip: Callable[[Tensor], Tensor] | None = None  # uint8 pictures through the autoencoder and back
    params: int | None = None  # of the network that is measured
    ranks: Ranks = field(default_factory=Ranks)  # the processes that measure together: all call `measure`
    show: int = 8  # captions of each set kept for the figures

    def measure(self, generate: Generate, caption_set: CaptionSet) -> SetResult:
        """Generates and measures the pictures of a set, once for each of the protocol's seeds.

        Raises UserError: an unknown metric, or fewer pictures than one wants that isn't in the set's `few`.
        """
        metrics, skipped = self._available(caption_set)
        few, count = self._too_few(caption_set, metrics), self._count(caption_set)
        floor, floor_images = self._floor(metrics, count)  # first: too few pictures for it are refused now
        started = time.perf_counter()
        runs = [self._run(generate, caption_set, metrics, repeat) for repeat in range(self.protocol.seeds)]
        seconds = time.perf_counter() - started
        scores, by_caption = zip(*(self._measured(metrics, seen) for _, seen, _ in runs), strict=True)
        requests, seen, first = runs[0]
        sides = seen.features, self.reference_set.features
        copies = next((found for each in metrics.values() if (found := each.copies_in(*sides))), None)
        references = {"floor": floor, **self._references(metrics, requests[:: caption_set.samples])}
        is_foreign = self.statistics is not None and self.statistics.preparation is None
        rows = [
            Row(
                set=caption_set.name,
                metric=name,
                **spread([one[key][name] for one in scores]),
                per_caption=[[one[name] for one in by_caption]] if name in by_caption[0] else [],
                seeds=self.protocol.seeds,
                images=count,
                few=key in few,
                foreign=is_foreign and metric.reference is not None,
                **{kind: found.get(key, {}).get(name) for kind, found in references.items()},
                nfe=self.protocol.nfe,
                seconds=round(seconds, 4),
                params=self.params,
                higher_is_better=metric.direction(name),
                reading=metric.reading,
            )
            for key, metric in metrics.items()
            for name in scores[0][key]
        ]
        return SetResult(
            name=caption_set.name,
            rows=rows,
            shown=self._shown(requests, seen, first, caption_set.samples),
            pairs=self._pairs(copies, generate, requests) if copies else [],
            copies=copies,
            floor_images=floor_images,
            images=count,
            seeds=(requests[0].seed, runs[-1][0][-1].seed),
            repeats=len(runs),
            seconds=seconds,
            skipped=skipped,
        )

    def check(self) -> None:
        """Refuses what `measure` would refuse, for all sets, before the first picture is generated."""
        for each in self.protocol.sets:
            metrics = self._available(each)[0]
            self._too_few(each, metrics)
            prompts = dict.fromkeys(request.prompt for request in self.requests(each))
            for metric in metrics.values():
                metric.check_prompts(prompts)
            last = self.protocol.seed_base + self.protocol.seeds * self._count(each) - 1
            check_seed(last, f"seed_base={self.protocol.seed_base}: the last seed of set {each.name!r}")

    def requests(self, caption_set: CaptionSet, *, repeat: int = 0) -> list[Request]:
        """The pictures of a set, with the seeds of one of its repeats."""
        start = self.protocol.seed_base + repeat * self._count(caption_set)
        return caption_set.requests(self.captions[caption_set.name], seed_base=start)

    def _count(self, caption_set: CaptionSet) -> int:
        """Pictures of a set, for each seed."""
        return len(self.captions[caption_set.name]) * caption_set.samples

    def _too_few(self, caption_set: CaptionSet, metrics: Metrics) -> set[str]:
        real = self.reference_set.count if self.statistics is None else self.statistics.count
        return caption_set.too_few(metrics, generated=self._count(caption_set), real=real)

    def _available(self, caption_set: CaptionSet) -> tuple[dict[str, PictureMetric], list[str]]:
        """The metrics of a set that can be measured; the names of those that lack a network or pictures."""
        if unknown := sorted({*caption_set.metrics} - self.metrics.keys()):
            raise UserError(
                f"caption set {caption_set.name!r} asks for metric {unknown[0]!r}, but there is no such "
                f"metric: name a file of conf/metric"
            )
        wanted = {name: self.metrics[name] for name in caption_set.metrics}
        able = {
            name: metric
            for name, metric in wanted.items()
            if {*metric.needs} <= self.observers.names
            and (self.statistics is None or not metric.against_real or metric.reference is not None)
        }
        return able, sorted(wanted.keys() - able.keys())

    @property
    def _pass(self) -> FeaturePass:
        return FeaturePass(
            observers=self.observers,
            batch_size=self.protocol.batch_size,
            ranks=self.ranks,
            folder=self.reference_set.folder,
        )

    def _run(
        self, generate: Generate, caption_set: CaptionSet, metrics: Metrics, repeat: int
    ) -> tuple[list[Request], Observed, list[Tensor]]:
        """The requests of a repeat, and their features; of the first one, pictures to show, too."""
        requests = self.requests(caption_set, repeat=repeat)
        title = caption_set.name if self.protocol.seeds == 1 else f"{caption_set.name}, {repeat + 1}"
        keep = 0 if repeat else self.show * caption_set.samples
        wanted, title = needs(metrics.values()), f"{title} captions"
        return requests, *self._pass(generate, requests, wanted=wanted, keep=keep, title=title)

    def _measured(self, metrics: Metrics, observed: Observed) -> tuple[Scores, dict[str, list[float]]]:
        """The numbers of generated pictures, and the means of each caption of those that are such means."""
        scores = self._score(metrics, observed)
        found = {name: means for each in metrics.values() for name, means in each.by_caption.items()}
        return scores, {name: [round(mean, 6) for mean in means.tolist()] for name, means in found.items()}

    def _score(self, metrics: Metrics, observed: Observed) -> Scores:
        return score(metrics, real=self.reference_set.observed(), generated=parts_of(observed))

    def _floor(self, metrics: Metrics, count: int) -> tuple[Scores, int]:
        """The metrics of real pictures against others, and how many are on each side."""
        asked = asking(metrics, "floor")
        if not asked or self.reference_set.count < 2:
            return {}, 0
        (some, others), observed = self._halves(count), self.reference_set.observed
        return score(asked, real=observed(others), generated=observed(some)), len(some)

    def _halves(self, count: int) -> tuple[list[int], list[int]]:
        """Rows of as many real pictures as are generated and of as many others, or two halves of all."""
        order = self._shuffled()
        size = min(count, len(order) // 2)
        return sorted(order[:size]), sorted(order[size : 2 * size])

    def _shuffled(self) -> list[int]:
        """Rows of all real pictures, ordered by hashes: the protocol alone decides, no library's shuffle."""
        seed, rows = self.protocol.caption_seed, range(self.reference_set.count)
        return sorted(rows, key=lambda row: hashlib.blake2b(f"{seed}/floor/{row}".encode()).digest())

    def _references(self, metrics: Metrics, requests: Sequence[Request]) -> dict[Reference, Scores]:
        """The metrics of the right pictures and of their round trip, or of as many real ones."""
        real, ceiling = asking(metrics, "real"), asking(metrics, "ceiling")
        if any(request.row == ELSEWHERE for request in requests):
            return {"real": self._any_real(real, len(requests))}
        found: dict[Reference, Scores] = {}
        if real:
            found["real"] = self._score(real, self._right(real, requests))
        if self.round_trip is not None and ceiling:
            seen, _ = self._pass(self._round_trips, requests, wanted=needs(ceiling.values()))
            found["ceiling"] = self._score(ceiling, seen)
        return found

    def _any_real(self, metrics: Metrics, count: int) -> Scores:
        """The metrics without a real side, of as many real pictures; none where there are fewer."""
        held = self.reference_set.features.keys()
        asked = {n: each for n, each in metrics.items() if not each.against_real and {*each.needs} <= held}
        if not asked or self.reference_set.count < count:
            return {}
        rows = sorted(self._shuffled()[:count])
        return score(asked, real=(), generated=self.reference_set.observed(rows))

    def _round_trips(self, requests: Sequence[Request]) -> UInt8[Tensor, "b 3 h w"]:
        assert self.round_trip is not None
        originals = torch.stack([self.reference_set.picture(request.row) for request in requests])
        return self.round_trip(originals).cpu()

    def _right(self, metrics: Metrics, requests: Sequence[Request]) -> Observed:
        """The right pictures in the place of generated ones; the features of pictures are there already."""
        rows = torch.tensor([request.row for request in requests])
        reader = self.observers.only(needs(metrics.values()))
        prompts = [request.prompt for request in requests]
        texts = (reader.read(part) for part in batched(prompts, self.protocol.batch_size))
        return Observed(
            features=self.reference_set.picked(rows) | store_tables(texts, folder=self.reference_set.folder),
            rows=rows,
            captions=torch.tensor([request.caption for request in requests]),
        )

    def _shown(
        self, requests: Sequence[Request], seen: Observed, pictures: Sequence[Tensor], samples: int
    ) -> list[Block]:
        """The captions whose pictures were kept, with the nearest and the right real picture."""
        features, real = seen.features, self.reference_set
        network = next((name for name in features if name in real.features), None)
        if not pictures or network is None:
            return []
        first, others = features[network][: len(pictures) : samples], real.features[network]
        rows = nearest(unit_rows(first), unit_rows(others), count=1)[1][:, 0].tolist()
        shown = []
        for one, own, row in zip(requests[::samples], batched(pictures, samples), rows, strict=False):
            right = None if one.row == ELSEWHERE else real.picture(one.row)
            names = "generated | nearest to the first | right"
            shown.append(Block((one.prompt, names), (*own, real.picture(row), right)))
        return shown

    def _pairs(self, copies: Copies, generate: Generate, requests: Sequence[Request]) -> list[Block]:
        """The nearest pairs; only features were kept, so that their pictures are generated once more."""
        chosen = [requests[number] for number in copies.generated[: self.show].tolist()]
        parts = batched(chosen, self.protocol.batch_size)
        pictures = torch.cat([generated(generate, part) for part in parts])
        found = zip(chosen, pictures, copies.real.tolist(), copies.distance.tolist(), strict=False)
        real = self.reference_set
        return [
            Block(
                (one.prompt, f"generated | {real.split_of(row)}, at {distance:.3f}"),
                (picture, real.picture(row)),
            )
            for one, picture, row, distance in found
        ]


def needs(metrics: Iterable[PictureMetric]) -> set[str]:
    """Names of the features that any of the metrics reads."""
    return {name for metric in metrics for name in metric.needs}


def asking(metrics: Metrics, reference: Reference) -> dict[str, PictureMetric]:
    """The metrics that declare a reference."""
    return {name: metric for name, metric in metrics.items() if reference in metric.references}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation of a number over the sampling seeds, and the number of each."""
    sd = stdev(values) if len(values) > 1 else None
    return {"value": mean(values), "sd": sd, "per_seed": [[*values]]}
