"""From pictures to features in one pass, by one process or by several that share the work."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, distributed
from tqdm import tqdm

from ldm import UserError
from ldm.evaluation.protocol import Request
from ldm.metrics.features import FeatureExtractor
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, store_tables
from ldm.metrics.picture_metric import Observed

T = TypeVar("T")
Features = dict[str, Float[Tensor, "b _"]]
TextFeatures = Callable[[Sequence[str]], Tensor]  # texts -> b d
Pipeline = Callable[[list[str], list[int]], Tensor]  # prompts, seeds -> uint8 b 3 h w
Generate = Callable[[Sequence[Request]], Tensor]  # requests -> uint8 b 3 h w


class RankError(RuntimeError):
    """Another process failed, so that this one can't continue what they did together."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among `count` that measure together; the default is one alone."""

    number: int = 0
    count: int = 1
    group: Any = None  # one of its own, so that no message is mixed up with a training's

    @classmethod
    def joined(cls, *, timeout: float) -> "Ranks":
        """All processes of a training or command, which must all call this; they wait `timeout` seconds."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
        return cls(number=distributed.get_rank(), count=distributed.get_world_size(), group=group)

    @classmethod
    def started(cls, *, timeout: float = 1800) -> "Ranks":
        """The processes that torchrun has started for a command, or this one alone."""
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
        return cls.joined(timeout=timeout)

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's items: every `count`th, so that shares differ by one at most and may be empty."""
        return items[self.number :: self.count]

    def gather(self, own: T) -> list[T]:
        """All-gather: what each process has, in their order; RankError where one has gone or is late."""
        if self.count == 1:
            return [own]
        everyone: list[Any] = [None] * self.count
        try:
            distributed.all_gather_object(everyone, own, group=self.group)
        except RuntimeError as error:
            raise RankError(f"a process has stopped or is late: {error}") from error
        return everyone

    def together(self, action: Callable[[], T]) -> list[T]:
        """Runs an action that exchanges nothing in each process, and gives every process all results.

        A failure of one ends in an error in all, and nobody waits: its own, and in the others a `RankError`.
        """
        if self.count == 1:
            return [action()]
        try:
            result, failure = action(), None
        except Exception as error:  # whatever it is, the others must hear of it; it is raised again below
            result, failure = None, error
        everyone = self.gather((result, None if failure is None else f"{type(failure).__name__}: {failure}"))
        if failure is not None:
            raise failure
        for number, (_, message) in enumerate(everyone):
            if message is not None:
                raise RankError(f"process {number} failed: {message}")
        return [each for each, _ in everyone]  # type: ignore[misc]

    def in_turns(self, own: Iterator[T]) -> Iterator[T]:
        """The results of all processes, in the order that the items had before `share`; errors as `together`.

        Each computes one result at a time and all get it, so that none holds more than one of each process.
        """
        while made := [each for one in self.together(lambda: list(islice(own, 1))) for each in one]:
            yield from made


@dataclass(frozen=True, kw_only=True)
class Observers:
    """The networks that look at pictures, by name, and that read texts, by the name of their features."""

    pictures: Mapping[str, FeatureExtractor] = field(default_factory=dict)
    texts: Mapping[str, TextFeatures] = field(default_factory=dict)

    @classmethod
    def of(cls, extractors: Mapping[str, FeatureExtractor]) -> "Observers":
        """Extractors, with features `<name>_text` of those that read too, as a CLIP does."""
        readers = {
            f"{each.identity.name}_text": each.read for each in extractors.values() if hasattr(each, "read")
        }
        return cls(pictures=extractors, texts=readers)

    def __or__(self, other: "Observers") -> "Observers":
        return Observers(pictures={**self.pictures, **other.pictures}, texts={**self.texts, **other.texts})

    @property
    def names(self) -> set[str]:
        """The names of all features that these networks give."""
        return {name for each in self.pictures.values() for name in each.dims} | {*self.texts}

    def only(self, wanted: Iterable[str]) -> "Observers":
        """The networks that give the features with these names."""
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


@dataclass(frozen=True, kw_only=True)
class FeaturePass:
    """Generates or reads all pictures of a set and takes the features of each once, a batch at a time.

    Rows come in the order of the requests. Processes share whole batches, so that a network sees the same
    ones, and gives the same bits, whatever their number; another size of a batch changes rows by rounding.
    """

    observers: Observers
    batch_size: int
    ranks: Ranks = field(default_factory=Ranks)  # each takes every n-th batch, and all get all features
    folder: Path | None = None  # where the features lie, see `store_tables`

    def __call__(
        self,
        generate: Generate,
        requests: Sequence[Request],
        *,
        wanted: Iterable[str],
        keep: int = 0,
        title: str = "",  # of the progress bar; none is shown without one
    ) -> tuple[Observed, list[UInt8[Tensor, "3 h w"]]]:
        """The wanted features of the pictures that requests ask for, and the first `keep` of the pictures.

        Raises UserError: no room for the files, or something other than one picture of 8 bit per request.
        RankError: another process failed.
        """
        names, first = {*wanted}, list[Tensor]()
        observers = self.observers.only(names)

        def look(start: int, batch: Sequence[Request]) -> tuple[Features, Tensor]:
            """The wanted features of a batch, and those of its pictures that are kept."""
            images = generated(generate, batch)
            features = observers.look(images) | observers.read([one.prompt for one in batch])
            held = {name: values for name, values in features.items() if name in names}
            return held, images[: max(0, keep - start)].clone()

        def tables() -> Iterator[Features]:
            """The features of each batch; its pictures are put aside on the way."""
            for features, images in self.over(requests, look, title=title):
                first.extend(images)
                yield features

        features = store_tables(tables(), folder=self.folder)
        rows, captions = torch.tensor([(one.row, one.caption) for one in requests]).unbind(1)
        return Observed(features=features, rows=rows, captions=captions), first

    def over(
        self, items: Sequence[T], look: Callable[[int, Sequence[T]], Any], *, title: str = ""
    ) -> Iterator[Any]:
        """The results of `look(number of the first item, batch)`, in order and in every process."""
        size = min(self.ranks.gather(self.batch_size))  # a process that ran out of memory has halved its own
        share = self.ranks.share([*enumerate(batched(items, size))])

        def own() -> Iterator[Any]:
            """The results of this process's batches, as the bar counts them."""
            total = sum(len(batch) for _, batch in share)
            with tqdm(total=total, desc=title, unit="picture", disable=not title) as bar:
                for number, batch in share:
                    yield look(number * size, batch)
                    bar.update(len(batch))

        return self.ranks.in_turns(own())


def generated(generate: Generate, requests: Sequence[Request]) -> UInt8[Tensor, "b 3 h w"]:
    """The pictures of one batch, on the CPU; UserError for anything but one 8-bit picture per request."""
    images = generate(requests)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[:2] != (len(requests), 3):
        raise UserError(
            f"the pipeline gave {images.dtype} {tuple(images.shape)} for {len(requests)} prompts, "
            f"expected torch.uint8 ({len(requests)}, 3, height, width)"
        )
    return images.cpu()


def generate_with(pipeline: Pipeline) -> Generate:
    """Pictures that a pipeline generates from the prompts and seeds."""
    return lambda requests: pipeline([one.prompt for one in requests], [one.seed for one in requests])


def batched(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """The items in parts of a size."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def parts_of(observed: Observed) -> Iterator[Observed]:
    """A table in parts of a fixed size, each a view of it, so that sums don't depend on the batch size."""
    for start in range(0, len(observed.rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        features = {name: values[part] for name, values in observed.features.items()}
        yield Observed(features=features, rows=observed.rows[part], captions=observed.captions[part])
