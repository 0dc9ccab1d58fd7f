"""The reference set of a protocol: captions in memory, features and pixels read when they are asked for."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from tqdm import tqdm

from ldm import UserError
from ldm.evaluation.captions import ELSEWHERE, Caption, CaptionSet, read_captions
from ldm.evaluation.feature_cache import FeatureCache, identity_of
from ldm.evaluation.feature_pass import Features, Observers, batched, parts_of
from ldm.evaluation.pictures import Pictures
from ldm.evaluation.ranks import Ranks
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, store_tables
from ldm.metrics.picture_metric import Observed, PictureMetric

BATCH = 32


class ReferenceSet:
    """Real pictures of one or more splits, numbered through, with their features.

    Args:
        splits: the pictures by split, in the order of their numbers; none where the reference is a file of
            statistics.
        observers: what takes the features; each picture is looked at once.
        wanted: names of the features that are held; null holds all.
        cache: where features are kept between runs.
        ranks: the processes that share the looking.
        progress: whether to draw a bar.
    """

    def __init__(
        self,
        splits: Mapping[str, Pictures],
        *,
        observers: Observers,
        wanted: Iterable[str] | None = None,
        cache: FeatureCache | None = None,
        ranks: Ranks | None = None,
        progress: bool = True,
    ) -> None:
        self.splits = dict(splits)
        starts = [0]
        for pictures in self.splits.values():
            starts.append(starts[-1] + len(pictures))
        self.offsets = dict(zip(self.splits, starts, strict=False))
        self.count = starts[-1]
        self.rows = {
            key: start + number
            for name, start in self.offsets.items()
            for number, key in enumerate(self.splits[name].keys())
        }
        self._cache, self._ranks, self._progress = (
            cache or FeatureCache(folder=None),
            ranks or Ranks(),
            progress,
        )
        names = {name for each in observers.pictures.values() for name in each.dims}
        names &= names if wanted is None else {*wanted}
        tables = [self._features(each, observers.only(names), names) for each in self.splits.values()]
        self.features = tables[0] if len(tables) == 1 else store_tables(tables, folder=self.folder)

    @property
    def folder(self) -> Path | None:
        """Where tables of features lie while they are needed, see `store_tables`."""
        return self._cache.folder

    def identity(self, observers: Observers) -> str:
        """sha256 of what the reference's statistics come from: pictures, sizes, networks."""
        networks = [asdict(each.identity) for each in observers.pictures.values()]
        pictures = [each.sha256 for each in self.splits.values()]
        return hashlib.sha256(json.dumps([pictures, networks], sort_keys=True).encode()).hexdigest()

    def captions(
        self, caption_set: CaptionSet, *, seed: int, measured: Pictures | None = None
    ) -> list[Caption]:
        """The captions of a set.

        Args:
            measured: the folder or split that is measured, whose captions a set without a split takes.

        Raises:
            UserError: a split that isn't among the gallery's or has too few pictures, or other captions than
                the set's sha256 tells.
        """
        if caption_set.file is not None:
            rows = self.rows if self.splits else None
            captions = read_captions(Path(caption_set.file), rows=rows)[: caption_set.captions]
        elif caption_set.split is None:
            captions = self._captions_of(measured, caption_set)
        else:
            captions = self._drawn(caption_set, seed)
        caption_set.check(captions)
        return captions

    def _captions_of(self, measured: Pictures | None, caption_set: CaptionSet) -> list[Caption]:
        if measured is None:
            raise UserError(
                f"caption set {caption_set.name!r} takes its captions from pictures that are there already: "
                f"name them with pictures=<folder>, or choose another protocol"
            )
        if len(measured) < (caption_set.captions or 1):
            raise UserError(
                f"caption set {caption_set.name!r} wants {caption_set.captions} pictures, there are "
                f"{len(measured)}: add some, or set its captions to null for all"
            )
        pairs = zip(measured.keys(), measured.texts(), strict=True)
        found = [Caption(text=own[0], key=key, row=self.rows.get(key, ELSEWHERE)) for key, own in pairs]
        return found[: caption_set.captions]

    def _drawn(self, caption_set: CaptionSet, seed: int) -> list[Caption]:
        split = caption_set.split
        if split not in self.splits:
            raise UserError(
                f"caption set {caption_set.name!r}: split {split!r} is not in splits {list(self.splits)}"
            )
        pictures = self.splits[split]
        return caption_set.draw(pictures.keys(), pictures.texts(), seed=seed, offset=self.offsets[split])

    def picture(self, row: int) -> UInt8[Tensor, "3 h w"]:
        """The picture with a number."""
        split = self.split_of(row)
        return self.splits[split].image(row - self.offsets[split])

    def split_of(self, row: int) -> str:
        """The split that the picture with a number is of."""
        return next(split for split, start in reversed(self.offsets.items()) if row >= start)

    def rows_of(self, split: str) -> Int[Tensor, "n"]:
        """The numbers of a split's pictures."""
        start = self.offsets[split]
        return torch.arange(start, start + len(self.splits[split]))

    def tell_splits(self, metrics: Iterable[PictureMetric]) -> None:
        """Gives metrics that look at one split alone its rows; where there is no such split, all count."""
        for metric in metrics:
            metric.seen = self.rows_of(metric.split) if metric.split in self.splits else None

    def pictures(self, rows: Sequence[int]) -> UInt8[Tensor, "b 3 h w"]:
        return torch.stack([self.picture(row) for row in rows])

    def observed(self, rows: Sequence[int] | None = None) -> Iterator[Observed]:
        """Features of the pictures with these numbers, or of all, in parts."""
        numbers = torch.arange(self.count) if rows is None else torch.tensor(rows)
        features = self.features if rows is None else self.picked(numbers)
        return parts_of(Observed(features=features, rows=numbers, captions=torch.full_like(numbers, -1)))

    def picked(self, rows: Int[Tensor, "n"]) -> Features:
        """Features of the pictures with these numbers, in their order, in files of their own."""
        parts = (
            {name: table[part] for name, table in self.features.items()} for part in rows.split(ROWS_AT_ONCE)
        )
        return store_tables(parts, folder=self.folder)

    def _features(self, pictures: Pictures, observers: Observers, names: set[str]) -> Features:
        """Features of one split: what is kept is read, the rest is looked at in one pass and kept."""
        identities = {
            name: identity_of(pictures.sha256, each.identity, name)
            for each in observers.pictures.values()
            for name in each.dims
            if name in names
        }
        kept: dict[str, Tensor | None] = {}

        def read() -> set[str]:
            kept.update({name: self._cache.read(one, rows=len(pictures)) for name, one in identities.items()})
            return {name for name, table in kept.items() if table is None}

        lacking = set().union(*self._ranks.together(read))  # a process may see another disk
        if lacking:
            looked = self._ranks.in_turns(self._look(pictures, observers.only(lacking), lacking))
            for name, table in store_tables(looked, folder=self.folder).items():
                kept[name] = table
                if self._ranks.number == 0:
                    self._cache.write(identities[name], table)
        return {name: table for name, table in kept.items() if table is not None}

    def _look(self, pictures: Pictures, observers: Observers, names: set[str]) -> Iterator[Features]:
        """Features of this process's share of batches."""
        batches = self._ranks.share(batched(range(len(pictures)), BATCH))
        with tqdm(
            total=sum(map(len, batches)), desc="real pictures", unit="picture", disable=not self._progress
        ) as bar:
            for batch in batches:
                seen = observers.look(torch.stack([pictures.image(number) for number in batch]))
                yield {name: values for name, values in seen.items() if name in names}
                bar.update(len(batch))
