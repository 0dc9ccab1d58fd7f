"""One pass over pictures feeds every measure; the same measures are then taken of references."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import UserError
from ldm.evaluation.captions import ELSEWHERE, Caption, CaptionSet
from ldm.evaluation.feature_pass import Observers, Seen, batched, observe, parts_of
from ldm.evaluation.few import few_results
from ldm.evaluation.generation import Draw, Request, requests_for
from ldm.evaluation.protocol import Protocol
from ldm.evaluation.ranks import Ranks
from ldm.evaluation.reference_set import Gallery
from ldm.evaluation.reference_statistics import Statistics
from ldm.evaluation.result_types import Row, SetResult
from ldm.evaluation.showing import closest_pairs, first_captions
from ldm.metrics.frechet import FrechetDistance
from ldm.metrics.mmap_tables import store_tables
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, result_name, score
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
    gallery: Gallery
    observers: Observers
    statistics: Statistics | None = None
    round_trip: Callable[[Tensor], Tensor] | None = None
    params: int | None = None
    ranks: Ranks = field(default_factory=Ranks)
    show: int = 8
    progress: bool = True

    def measure(self, draw: Draw, caption_set: CaptionSet) -> SetResult:
        """Draws a set's pictures, once for each of the protocol's seeds, and measures them with references.

        Raises:
            UserError: an unknown metric, or fewer pictures than one wants that isn't in the set's `few`.
        """
        metrics, skipped = self._available(caption_set)
        count = len(self.captions[caption_set.name]) * caption_set.samples
        few = few_results(caption_set, metrics, drawn=count, real=self._real)
        floor = self._floor(metrics, count)
        started = time.perf_counter()
        runs = [self._seen(draw, caption_set, metrics, repeat) for repeat in range(self.protocol.seeds)]
        seconds = time.perf_counter() - started
        numbers = [
            score(metrics, real=self.gallery.observed(), generated=parts_of(seen.observed))
            for _, seen in runs
        ]
        batch = self.protocol.batch_size
        closest = closest_pairs(
            metrics.values(), draw, *runs[0], self.gallery, count=self.show, batch_size=batch
        )
        references = self._references(metrics, runs[0][0][:: caption_set.samples])
        foreign = self._foreign(metrics)
        row = Row(
            set=caption_set.name,
            metric="",
            value=0.0,
            images=count,
            seeds=self.protocol.seeds,
            nfe=self.protocol.nfe,
            seconds=round(seconds, 4),
            params=self.params,
            protocol=self.protocol.hash,
        )
        return SetResult(
            name=caption_set.name,
            rows=[
                replace(
                    row,
                    metric=name,
                    few=name in few,
                    foreign=name in foreign,
                    floor=floor.get(name),
                    **spread(numbers, name),
                    **references.get(name, {}),
                )
                for name in numbers[0]
            ],
            shown=first_captions(*runs[0], self.gallery, samples=caption_set.samples),
            closest=closest,
            floor_images=len(self._halves(count)[0]) if floor else 0,
            images=count,
            seeds=(runs[0][0][0].seed, runs[-1][0][-1].seed),
            repeats=len(runs),
            seconds=seconds,
            skipped=skipped,
        )

    def check(self) -> None:
        """Refuses what `measure` would refuse, for all sets, before the first picture is drawn.

        Raises:
            UserError: as `measure`.
        """
        for each in self.protocol.sets:
            metrics, _ = self._available(each)
            count = len(self.captions[each.name]) * each.samples
            few_results(each, metrics, drawn=count, real=self._real)
            last = self.protocol.seed_base + self.protocol.seeds * count - 1
            check_seed(last, f"seed_base={self.protocol.seed_base}: the last seed of set {each.name!r}")

    def requests(self, caption_set: CaptionSet, *, repeat: int = 0) -> list[Request]:
        """The pictures of a set, with the seeds of one of its repeats."""
        captions = self.captions[caption_set.name]
        start = self.protocol.seed_base + repeat * len(captions) * caption_set.samples
        return requests_for(captions, samples=caption_set.samples, seed_base=start, folder=caption_set.name)

    @property
    def _real(self) -> int | None:
        """How many pictures the reference is of; null where nobody knows."""
        return self.gallery.count if self.statistics is None else self.statistics.count

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
        networks = {*metric.needs} <= self.observers.names
        if self.statistics is None or not metric.against_real:
            return networks
        return networks and isinstance(metric, FrechetDistance) and metric.reference is not None

    def _foreign(self, metrics: Mapping[str, PictureMetric]) -> set[str]:
        """Results against statistics of unknown preparation."""
        if self.statistics is None or self.statistics.preparation is not None:
            return set()
        distances = (each for each in metrics.values() if isinstance(each, FrechetDistance))
        return {result_name("fd", each.features) for each in distances}

    def _seen(
        self, draw: Draw, caption_set: CaptionSet, metrics: Mapping[str, PictureMetric], repeat: int
    ) -> tuple[list[Request], Seen]:
        requests = self.requests(caption_set, repeat=repeat)
        title = caption_set.name if self.protocol.seeds == 1 else f"{caption_set.name}, {repeat + 1}"
        keep = 0 if repeat else self.show * caption_set.samples
        return requests, self._observe(draw, requests, metrics, keep=keep, title=f"{title} captions")

    def _observe(
        self,
        draw: Draw,
        requests: Sequence[Request],
        metrics: Mapping[str, PictureMetric],
        *,
        keep: int = 0,
        title: str = "",
    ) -> Seen:
        wanted = {name for metric in metrics.values() for name in metric.needs}
        return observe(
            draw,
            requests,
            observers=self.observers.only(wanted),
            wanted=wanted,
            batch_size=self.protocol.batch_size,
            keep=keep,
            ranks=self.ranks,
            folder=self.gallery.folder,
            title=title,
            progress=self.progress and bool(title),
        )

    def _floor(self, metrics: Mapping[str, PictureMetric], count: int) -> dict[str, float]:
        """The measures of real pictures against others; first of all, so that too few are told now."""
        asked = {name: metric for name, metric in metrics.items() if "floor" in metric.references}
        if not asked or self.gallery.count < 2:
            return {}
        drawn, others = self._halves(count)
        return score(asked, real=self.gallery.observed(others), generated=self.gallery.observed(drawn))

    def _references(
        self, metrics: Mapping[str, PictureMetric], requests: Sequence[Request]
    ) -> dict[str, dict[str, float]]:
        """The measures of the right pictures and of their round trip, or of as many real ones."""
        if any(request.row == ELSEWHERE for request in requests):
            return self._any_real(metrics, len(requests))
        sources: dict[Reference, Callable[[Mapping[str, PictureMetric]], Observed]] = {
            "real": lambda asked: self._right(asked, requests)
        }
        if self.round_trip is not None:
            sources["ceiling"] = lambda asked: self._observe(self._round_trips, requests, asked).observed
        found: dict[str, dict[str, float]] = {}
        for reference, source in sources.items():
            asked = {name: metric for name, metric in metrics.items() if reference in metric.references}
            numbers = self._against_real(asked, source(asked)) if asked else {}
            for name, value in numbers.items():
                found.setdefault(name, {})[reference] = value
        return found

    def _any_real(self, metrics: Mapping[str, PictureMetric], count: int) -> dict[str, dict[str, float]]:
        """What holds pictures against nothing, of as many real ones; of fewer there is no such number."""
        held = self.gallery.features.keys()
        asked = {
            name: metric
            for name, metric in metrics.items()
            if "real" in metric.references and not metric.against_real and {*metric.needs} <= held
        }
        if not asked or self.gallery.count < count:
            return {}
        numbers = score(asked, real=(), generated=self.gallery.observed(sorted(self._shuffled()[:count])))
        return {name: {"real": value} for name, value in numbers.items()}

    def _against_real(self, metrics: Mapping[str, PictureMetric], seen: Observed) -> dict[str, float]:
        return score(metrics, real=self.gallery.observed(), generated=parts_of(seen))

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
        reader = self.observers.only(name for metric in metrics.values() for name in metric.needs)
        prompts = [request.prompt for request in requests]
        texts = (reader.read(part) for part in batched(prompts, self.protocol.batch_size))
        return Observed(
            features=self.gallery.picked(rows) | store_tables(texts, folder=self.gallery.folder),
            rows=rows,
            captions=torch.tensor([request.caption for request in requests]),
        )


def spread(numbers: Sequence[Mapping[str, float]], name: str) -> dict[str, float | None]:
    """Mean and standard deviation of a number over the seeds."""
    found = [each[name] for each in numbers]
    return {"value": mean(found), "sd": stdev(found) if len(found) > 1 else None}
