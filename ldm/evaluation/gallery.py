"""All real pictures of a protocol: features and captions in memory, pixels read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm.checkpoints.bundle import Bundle
from ldm.codec import Codec
from ldm.data.pictures import PictureDataset
from ldm.evaluation.protocol import Caption, CaptionSet
from ldm.metrics.features import FeatureExtractor, resize_pictures
from ldm.metrics.picture_metric import Observed

BATCH = 32
OWN_CLIP = "own_clip"  # says in every result's name that the judge belongs to the model

PictureFeatures = Callable[[Tensor], Tensor]  # uint8 b 3 h w -> b d
TextFeatures = Callable[[Sequence[str]], Tensor]  # texts -> b d


@dataclass(frozen=True, kw_only=True)
class Observers:
    """The networks that look at pictures and texts, by the name of what they see."""

    pictures: Mapping[str, PictureFeatures]
    texts: Mapping[str, TextFeatures]

    @property
    def names(self) -> set[str]:
        return {*self.pictures, *self.texts}

    @torch.no_grad()
    def look(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        return {name: network(images).float().cpu() for name, network in self.pictures.items()}

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> dict[str, Float[Tensor, "b _"]]:
        return {name: network(texts).float().cpu() for name, network in self.texts.items()}


def clip_observers(codec: Codec, image_encoder: Callable[[Tensor], Tensor], *, image_size: int) -> Observers:
    """The model's own CLIP as a judge: text tower of the codec, vision tower of the bundle."""

    def look(images: Tensor) -> Tensor:
        resized = resize_pictures(images.to(codec.device), size=image_size, mode="bicubic")
        return image_encoder(resized / 127.5 - 1)

    def read(texts: Sequence[str]) -> Tensor:
        return codec.text_encoder(codec.tokenizer.encode(texts).to(codec.device)).pooled

    return Observers(pictures={f"{OWN_CLIP}_image": look}, texts={f"{OWN_CLIP}_text": read})


def observers_of(bundle: Bundle, codec: Codec, extractor: FeatureExtractor) -> Observers:
    """A feature network, and the bundle's own CLIP where it carries a vision tower."""
    pictures, texts = {extractor.identity.name: extractor}, {}
    if "image_encoder" in bundle.names:
        encoder = bundle.network("image_encoder").to(codec.device)
        clip = clip_observers(codec, encoder, image_size=encoder.image_size)
        pictures, texts = pictures | clip.pictures, texts | clip.texts
    return Observers(pictures=pictures, texts=texts)


class Gallery:
    """Real pictures of one or more splits, numbered through, with their features.

    Args:
        splits: the pictures by split, in the order of their numbers.
        observers: what takes the features; each picture is looked at once.
        progress: whether to draw a bar.
    """

    def __init__(
        self, splits: Mapping[str, PictureDataset], *, observers: Observers, progress: bool = True
    ) -> None:
        self.splits = dict(splits)
        starts = [0]
        for pictures in self.splits.values():
            starts.append(starts[-1] + len(pictures))
        self.offsets = dict(zip(self.splits, starts, strict=False))
        self.count = starts[-1]
        self.features = self._look(observers, progress=progress)

    def captions(self, caption_set: CaptionSet, *, seed: int) -> list[Caption]:
        """The captions that a set draws.

        Raises:
            ValueError: a split that isn't among the gallery's, or has too few pictures.
        """
        split = caption_set.split
        if split not in self.splits:
            raise ValueError(
                f"caption set {caption_set.name!r}: split {split!r} is not in splits {list(self.splits)}"
            )
        pictures = self.splits[split]
        return caption_set.draw(
            pictures.reader.keys(), pictures.texts(), seed=seed, offset=self.offsets[split]
        )

    def picture(self, row: int) -> UInt8[Tensor, "3 h w"]:
        """The picture with a number."""
        for split, start in reversed(self.offsets.items()):
            if row >= start:
                return self.splits[split].image(row - start)
        raise IndexError(row)

    def pictures(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        return torch.stack([self.picture(row) for row in rows])

    def observed(self, rows: Sequence[int] | None = None) -> Iterator[Observed]:
        """Features of the pictures with these numbers, or of all, in batches."""
        numbers = torch.arange(self.count) if rows is None else torch.tensor(rows)
        for batch in numbers.split(1024):
            features = {name: values[batch] for name, values in self.features.items()}
            yield Observed(features=features, rows=batch, captions=torch.full_like(batch, -1))

    def _look(self, observers: Observers, *, progress: bool) -> dict[str, Tensor]:
        parts: dict[str, list[Tensor]] = {name: [] for name in observers.pictures}
        with tqdm(total=self.count, desc="real pictures", unit="picture", disable=not progress) as bar:
            for start in range(0, self.count, BATCH):
                rows = range(start, min(start + BATCH, self.count))
                for name, values in observers.look(self.pictures(rows)).items():
                    parts[name].append(values)
                bar.update(len(rows))
        return {name: torch.cat(values) for name, values in parts.items()}
