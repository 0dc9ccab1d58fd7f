"""One pass over generated pictures feeds every measure; the same measures are then taken of references."""

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.evaluation.gallery import BATCH, Gallery, Observers
from ldm.evaluation.generation import Pipeline, Request, generate, requests_for
from ldm.evaluation.protocol import CaptionSet, Protocol
from ldm.metrics.nearest import nearest
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference
from ldm.metrics.reconstruction import Reconstruction


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number with what it must be read beside.

    Attributes:
        set: caption set that it was measured on, or "autoencoder".
        images: how many pictures it was measured on.
        floor, ceiling, real: the same measure of real pictures against the others, of the autoencoder's
            round trip, and of the right real pictures; null where it says nothing.
    """

    set: str
    metric: str
    value: float
    images: int
    floor: float | None = None
    ceiling: float | None = None
    real: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A caption with its pictures, for people to look at."""

    prompt: str
    generated: UInt8[Tensor, "s 3 h w"]
    nearest: UInt8[Tensor, "3 h w"]
    right: UInt8[Tensor, "3 h w"]


@dataclass(frozen=True, kw_only=True)
class SetResult:
    """What was measured on one caption set."""

    name: str
    rows: list[Row]
    shown: list[Shown]
    images: int
    seeds: tuple[int, int]
    seconds: float  # of generating, features included
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Measures any pipeline under one protocol, against one gallery.

    Attributes:
        metrics: by the names that the caption sets use.
        round_trip: pictures through the autoencoder and back, uint8 to uint8.
        show: captions of each set kept for the figures.
    """

    protocol: Protocol
    metrics: Mapping[str, PictureMetric]
    gallery: Gallery
    observers: Observers
    round_trip: Callable[[Tensor], Tensor]
    batch_size: int = 32
    show: int = 8
    progress: bool = True

    def measure(self, pipeline: Pipeline, caption_set: CaptionSet) -> SetResult:
        """Generates a set's pictures and measures them and their references."""
        protocol = self.protocol
        captions = self.gallery.captions(caption_set, seed=protocol.caption_seed)
        requests = requests_for(captions, samples=caption_set.samples, seed_base=protocol.seed_base)
        metrics, skipped = self._available(caption_set)
        kept: list[tuple[Request, Tensor]] = []
        started = time.perf_counter()
        values = score(
            metrics,
            real=self.gallery.observed(),
            generated=self._generated(
                pipeline, requests, kept, title=caption_set.name, samples=caption_set.samples
            ),
        )
        seconds = time.perf_counter() - started
        references = self._references(metrics, requests[:: caption_set.samples])
        return SetResult(
            name=caption_set.name,
            rows=[
                Row(
                    set=caption_set.name,
                    metric=name,
                    value=value,
                    images=len(requests),
                    **references.get(name, {}),
                )
                for name, value in values.items()
            ],
            shown=self._shown(kept, samples=caption_set.samples),
            images=len(requests),
            seeds=(requests[0].seed, requests[-1].seed),
            seconds=seconds,
            skipped=skipped,
        )

    def _available(self, caption_set: CaptionSet) -> tuple[dict[str, PictureMetric], list[str]]:
        unknown = set(caption_set.metrics) - set(self.metrics)
        if unknown:
            raise ValueError(
                f"caption set {caption_set.name!r} asks for metric {sorted(unknown)[0]!r}; chosen are: "
                f"{', '.join(sorted(self.metrics))}"
            )
        wanted = {name: self.metrics[name] for name in caption_set.metrics}
        able = {name: metric for name, metric in wanted.items() if {*metric.needs} <= self.observers.names}
        return able, sorted(set(wanted) - set(able))

    def _generated(
        self, pipeline: Pipeline, requests: Sequence[Request], kept: list, *, title: str, samples: int
    ) -> Iterator[Observed]:
        batches = generate(
            pipeline, requests, batch_size=self.batch_size, title=f"{title} captions", progress=self.progress
        )
        for batch, images in batches:
            room = self.show * samples - len(kept)
            kept.extend(zip(batch[:room], images[:room], strict=True))
            yield self._observe(batch, self.observers.look(images))

    def _observe(self, requests: Sequence[Request], features: Mapping[str, Tensor]) -> Observed:
        return Observed(
            features={**features, **self.observers.read([request.prompt for request in requests])},
            rows=torch.tensor([request.row for request in requests]),
            captions=torch.tensor([request.caption for request in requests]),
        )

    def _references(
        self, metrics: Mapping[str, PictureMetric], requests: Sequence[Request]
    ) -> dict[str, dict[str, float]]:
        """The measures of the right pictures, of their round trip, and of real pictures against others."""
        drawn, left = self._halves(len(requests))
        sources: dict[Reference, Callable[[], tuple[Iterable[Observed], Iterable[Observed]]]] = {
            "floor": lambda: (self.gallery.observed(left), self.gallery.observed(drawn)),
            "ceiling": lambda: (self.gallery.observed(), self._round_trips(requests)),
            "real": lambda: (self.gallery.observed(), self._right(requests)),
        }
        found: dict[str, dict[str, float]] = {}
        for reference, source in sources.items():
            asked = {name: metric for name, metric in metrics.items() if reference in metric.references}
            if asked:
                real, generated = source()
                for name, value in score(asked, real=real, generated=generated).items():
                    found.setdefault(name, {})[reference] = value
        return found

    def _halves(self, count: int) -> tuple[list[int], list[int]]:
        """As many real pictures as were generated, at most half, and the rest."""
        seed, total = self.protocol.caption_seed, self.gallery.count
        order = sorted(range(total), key=lambda row: hashlib.blake2b(f"{seed}/floor/{row}".encode()).digest())
        size = min(count, total // 2)
        return sorted(order[:size]), sorted(order[size:])

    def _round_trips(self, requests: Sequence[Request]) -> Iterator[Observed]:
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            originals = self.gallery.pictures([request.row for request in batch])
            yield self._observe(batch, self.observers.look(self.round_trip(originals).cpu()))

    def _right(self, requests: Sequence[Request]) -> Iterator[Observed]:
        rows = [request.row for request in requests]
        yield self._observe(requests, {name: values[rows] for name, values in self.gallery.features.items()})

    def _shown(self, kept: Sequence[tuple[Request, Tensor]], *, samples: int) -> list[Shown]:
        if not kept:
            return []
        network = self.protocol.features.name
        looked = self.observers.look(torch.stack([image for _, image in kept[::samples]]))[network]
        closest = nearest(looked, self.gallery.features[network])[:, 0].tolist()
        return [
            Shown(
                prompt=request.prompt,
                generated=torch.stack(
                    [image for _, image in kept[number * samples : (number + 1) * samples]]
                ),
                nearest=self.gallery.picture(closest[number]),
                right=self.gallery.picture(request.row),
            )
            for number, (request, _) in enumerate(kept[::samples])
        ]


def score(
    metrics: Mapping[str, PictureMetric], *, real: Iterable[Observed], generated: Iterable[Observed]
) -> dict[str, float]:
    """Feeds both sides to every metric, a batch at a time, and gathers what they say, by name.

    Raises:
        ValueError: two metrics with one name for their result, or a result that is not finite.
    """
    for metric in metrics.values():
        metric.reset()
    for batches, is_real in ((real, True), (generated, False)):
        for batch in batches:
            for metric in metrics.values():
                metric.update(batch, real=is_real)
    values: dict[str, float] = {}
    for metric in metrics.values():
        for name, value in metric.compute().items():
            if name in values:
                raise ValueError(f"two metrics call their result {name!r}: give one of them other features")
            values[name] = float(value)
    broken = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    if broken:
        raise ValueError(f"metric {broken[0]!r} came out as {values[broken[0]]}: nothing is written")
    return values


def reconstruct(codec: Codec, pictures: PictureDataset, *, progress: bool = True) -> list[Row]:
    """PSNR and SSIM of the autoencoder's round trip (mean of the posterior) over a split."""
    metric = Reconstruction()
    with tqdm(total=len(pictures), desc="autoencoder", unit="picture", disable=not progress) as bar:
        for start in range(0, len(pictures), BATCH):
            numbers = range(start, min(start + BATCH, len(pictures)))
            originals = torch.stack([pictures.image(number) for number in numbers])
            metric.update(round_trip(codec, originals), originals)
            bar.update(len(numbers))
    values = {name: float(value) for name, value in metric.compute().items()}
    return [
        Row(set="autoencoder", metric=name, value=value, images=len(pictures))
        for name, value in values.items()
    ]


def round_trip(codec: Codec, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
    """Pictures through the autoencoder and back, by the posterior's mean."""
    return codec.decode(codec.encode_images(images).mean).cpu()
