"""The one pass over a set: pictures are generated batch by batch, and networks take their features."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm import UserError
from ldm.evaluation.captions import Request
from ldm.evaluation.ranks import Ranks
from ldm.metrics.features import OWN_CLIP, FeatureExtractor, FeatureIdentity, resize_pictures
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, store_tables
from ldm.metrics.picture_metric import Observed

T = TypeVar("T")
Features = dict[str, Float[Tensor, "b _"]]
TextFeatures = Callable[[Sequence[str]], Tensor]  # texts -> b d
Pipeline = Callable[[list[str], list[int]], Tensor]  # prompts, seeds -> uint8 b 3 h w
Draw = Callable[[Sequence[Request]], Tensor]  # requests -> uint8 b 3 h w


@dataclass(frozen=True, kw_only=True)
class Observers:
    """The networks that look.

    Attributes:
        pictures: feature extractors by name.
        texts: what reads texts, by the name of its features.
    """

    pictures: Mapping[str, FeatureExtractor]
    texts: Mapping[str, TextFeatures] = field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """Of all features that can be had."""
        return {name for each in self.pictures.values() for name in each.dims} | {*self.texts}

    def only(self, wanted: Iterable[str]) -> "Observers":
        """Those that are needed for the features with these names."""
        names = {*wanted}
        return Observers(
            pictures={key: each for key, each in self.pictures.items() if names & {*each.dims}},
            texts={name: each for name, each in self.texts.items() if name in names},
        )

    @torch.no_grad()
    def look(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        """All features of pictures, on the CPU."""
        return {
            name: values.float().cpu()
            for network in self.pictures.values()
            for name, values in network(images).items()
        }

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Features:
        """All features of texts, on the CPU."""
        return {name: network(texts).float().cpu() for name, network in self.texts.items()}


def readers(extractors: Iterable[FeatureExtractor]) -> dict[str, TextFeatures]:
    """Text features `<name>_text` of those extractors that read too, as a CLIP does."""
    return {f"{each.identity.name}_text": each.read for each in extractors if hasattr(each, "read")}


class OwnClip:
    """The vision tower of the model's own CLIP, as a feature extractor.

    Args:
        encoder: uint8 pictures, brought to [-1, 1] at its size, to features.
        dims: how many it gives.
        size: side of its input in pixels.
        sha256: of its weights.
    """

    def __init__(
        self, encoder: Callable[[Tensor], Tensor], *, dims: int, size: int, sha256: str, device: torch.device
    ) -> None:
        self.encoder, self.device = encoder, device
        self.dims = {f"{OWN_CLIP}_image": dims}
        self.identity = FeatureIdentity(name=OWN_CLIP, sha256=sha256, size=size, resize="bicubic")

    def __call__(self, images: UInt8[Tensor, "b 3 h w"]) -> Features:
        resized = resize_pictures(images.to(self.device), size=self.identity.size, mode="bicubic")
        return {f"{OWN_CLIP}_image": self.encoder(resized / 127.5 - 1)}


class Seen(NamedTuple):
    """A set of pictures as it was seen in one pass.

    Attributes:
        first: the first few pictures themselves.
    """

    observed: Observed
    first: list[UInt8[Tensor, "3 h w"]]


@dataclass(frozen=True, kw_only=True)
class FeaturePass:
    """Generates all pictures of a set and takes the features of each once; only a batch is ever in memory.

    Rows come in the order of the requests, and are the same whatever the number of processes; the size of a
    batch changes them by rounding.

    Attributes:
        batch_size: pictures generated at once.
        ranks: the processes that share the work: each takes every n-th batch, and all get all features.
        folder: where the features lie, see `store_tables`.
        progress: whether passes with a title draw a bar.
    """

    observers: Observers
    batch_size: int
    ranks: Ranks = field(default_factory=Ranks)
    folder: Path | None = None
    progress: bool = True

    def __call__(
        self,
        draw: Draw,
        requests: Sequence[Request],
        *,
        wanted: Iterable[str],
        keep: int = 0,
        title: str = "",
    ) -> Seen:
        """Takes the features of the pictures that requests ask for.

        Args:
            wanted: names of the features that are held.
            keep: how many of the first pictures are kept.

        Raises:
            UserError: no room for the files, or pictures of another form than one of 8 bit a request.
            RankError: another process failed.
        """
        names = {*wanted}
        size = min(self.ranks.gather(self.batch_size))
        batches = [*enumerate(batched(requests, size))]

        def features_of_share() -> Iterator[tuple[Features, Tensor]]:
            observers, share = self.observers.only(names), self.ranks.share(batches)
            hidden = not (self.progress and title)
            with tqdm(total=sum(len(b) for _, b in share), desc=title, unit="picture", disable=hidden) as bar:
                for number, batch in share:
                    images = generated(draw, batch)
                    features = observers.look(images) | observers.read([one.prompt for one in batch])
                    held = {name: values for name, values in features.items() if name in names}
                    yield held, images[: max(0, keep - number * size)].clone()
                    bar.update(len(batch))

        first: list[Tensor] = []

        def features_of_all() -> Iterator[Features]:
            for features, images in self.ranks.in_turns(features_of_share()):
                first.extend(images)
                yield features

        return Seen(
            observed=Observed(
                features=store_tables(features_of_all(), folder=self.folder),
                rows=torch.tensor([request.row for request in requests]),
                captions=torch.tensor([request.caption for request in requests]),
            ),
            first=first,
        )


def generated(draw: Draw, requests: Sequence[Request]) -> UInt8[Tensor, "b 3 h w"]:
    """The pictures of one batch, on the CPU.

    Raises:
        UserError: something other than one 8-bit picture a request.
    """
    images = draw(requests)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(requests), 3):
        raise UserError(
            f"the pipeline gave {images.dtype} {tuple(images.shape)} for {len(requests)} prompts, "
            f"expected torch.uint8 ({len(requests)}, 3, height, width)"
        )
    return images.cpu()


def drawn_by(pipeline: Pipeline) -> Draw:
    """Pictures that a pipeline generates from the prompts and seeds."""
    return lambda requests: pipeline([one.prompt for one in requests], [one.seed for one in requests])


def batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in parts of a size.

    Whole parts are dealt out to processes, so that a network sees the same batches, and gives the same bits,
    whatever the number of processes.
    """
    return [items[start : start + size] for start in range(0, len(items), size)]


def parts_of(observed: Observed) -> Iterator[Observed]:
    """A table in parts of a fixed size, each a view of it; of an empty one there are none.

    The sums of metrics then don't depend on the batch size.
    """
    for start in range(0, len(observed.rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        features = {name: values[part] for name, values in observed.features.items()}
        yield Observed(features=features, rows=observed.rows[part], captions=observed.captions[part])
