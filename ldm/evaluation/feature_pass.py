"""The networks that look at pictures and texts, and the one pass in which they see all of a set."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm.evaluation.generation import Draw, Request, generate
from ldm.evaluation.ranks import Ranks
from ldm.metrics.features import FeatureExtractor, FeatureIdentity, resize_pictures
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, store_tables
from ldm.metrics.picture_metric import Observed

OWN_CLIP = "own_clip"  # says in every result's name that the judge belongs to the model

T = TypeVar("T")
Features = dict[str, Float[Tensor, "b _"]]
TextFeatures = Callable[[Sequence[str]], Tensor]  # texts -> b d


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


def observe(
    draw: Draw,
    requests: Sequence[Request],
    *,
    observers: Observers,
    batch_size: int,
    wanted: Iterable[str],
    keep: int = 0,
    ranks: Ranks | None = None,
    folder: Path | None = None,
    title: str = "",
    progress: bool = True,
) -> Seen:
    """Draws all pictures and looks at each once; every process takes its share of batches and gets all.

    Rows come in the order of the requests, and are the same whatever the number of processes; the size of a
    batch changes them by rounding. They lie
    in files: what is in memory is a batch, not all of them.

    Args:
        wanted: names of the features that are held.
        keep: how many of the first pictures are kept.
        folder: of the files, see `store_tables`.

    Raises:
        UserError: no room for the files.
        RankError: another process failed.
    """
    ranks, names = ranks or Ranks(), {*wanted}
    size = min(ranks.gather(batch_size))
    batches = ranks.share(batched(range(len(requests)), size))

    def look() -> Iterator[tuple[Features, list[Tensor]]]:
        share = [requests[place] for batch in batches for place in batch]
        drawn = generate(draw, share, batch_size=size, title=title, progress=progress)
        for places, (batch, images) in zip(batches, drawn, strict=True):
            features = observers.look(images) | observers.read([request.prompt for request in batch])
            held = {name: values for name, values in features.items() if name in names}
            yield held, [image.clone() for image in images[: max(0, keep - places[0])]]

    first: list[Tensor] = []

    def seen() -> Iterator[Features]:
        for features, images in ranks.in_turns(look()):
            first.extend(images)
            yield features

    return Seen(
        observed=Observed(
            features=store_tables(seen(), folder=folder),
            rows=torch.tensor([request.row for request in requests]),
            captions=torch.tensor([request.caption for request in requests]),
        ),
        first=first,
    )


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
