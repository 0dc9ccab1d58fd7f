"""The reference set of a protocol: captions in memory, pixels and features read when they are asked for."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.provenance import config_hash
from ldm.evaluation.feature_pass import FeaturePass, Features, Observers, Ranks, parts_of
from ldm.evaluation.pictures import BATCH, Pictures
from ldm.evaluation.protocol import ELSEWHERE, Caption, CaptionSet, read_captions
from ldm.io.writing import make_folder, writing
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, append, store_tables
from ldm.metrics.picture_metric import Observed, PictureMetric

ALIGNMENT = 8  # bytes, of the numbers in a safetensors file
CHECKSUM = "sha256"  # of the numbers, in the file's metadata


class ReferenceSet:
    """Real pictures of one or more splits, numbered through, with their features.

    Args:
        splits: the pictures by split, in the order of their numbers; none where the reference is statistics.
        observers: what takes the features; each picture is looked at once.
        wanted: names of the features that are held; None holds all.
        cache: where features are kept between runs.
    """

    def __init__(
        self,
        splits: Mapping[str, Pictures],
        *,
        observers: Observers,
        wanted: Iterable[str] | None = None,
        cache: "FeatureCache | None" = None,
        ranks: Ranks | None = None,
        progress: bool = True,
    ) -> None:
        self.splits = dict(splits)
        *starts, self.count = accumulate(map(len, self.splits.values()), initial=0)
        self.offsets = dict(zip(self.splits, starts, strict=True))
        self.rows = {
            key: start + number
            for name, start in self.offsets.items()
            for number, key in enumerate(self.splits[name].keys())
        }
        self.cache = cache or FeatureCache()
        names = {name for each in observers.pictures.values() for name in each.dims}
        names &= names if wanted is None else {*wanted}
        own, together = observers.only(names), ranks or Ranks()
        look = FeaturePass(observers=own, batch_size=BATCH, ranks=together, folder=self.folder)
        self.title = "real pictures" if progress else ""
        tables = [self._features(each, look, names) for each in self.splits.values()]
        self.features = tables[0] if len(tables) == 1 else store_tables(tables, folder=self.folder)

    @property
    def folder(self) -> Path | None:
        """The folder of `store_tables` for tables of features while they are needed."""
        return self.cache.folder

    def identity(self, observers: Observers) -> str:
        """sha256 of what the reference's statistics come from: pictures, sizes, networks."""
        networks = [asdict(each.identity) for each in observers.pictures.values()]
        pictures = [each.sha256 for each in self.splits.values()]
        return config_hash([pictures, networks])

    def captions(
        self, caption_set: CaptionSet, *, seed: int, measured: Pictures | None = None
    ) -> list[Caption]:
        """The captions of a set; without a split those of the folder or split that is `measured`.

        Raises UserError: an unknown split, too few pictures, or other captions than the set's sha256 says.
        """
        split, most = caption_set.split, caption_set.captions
        if caption_set.file is not None:
            found = read_captions(Path(caption_set.file), rows=self.rows if self.splits else None)[:most]
        elif split is None:
            found = self._captions_of(measured, caption_set)[:most]
        elif split in self.splits:
            pictures, offset = self.splits[split], self.offsets[split]
            found = caption_set.choose(pictures.keys(), pictures.texts(), seed=seed, offset=offset)
        else:
            raise UserError(
                f"caption set {caption_set.name!r}: split {split!r} is not in splits {list(self.splits)}"
            )
        caption_set.check(found)
        return found

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
        return [Caption(own[0], key, self.rows.get(key, ELSEWHERE)) for key, own in pairs]

    def picture(self, row: int) -> UInt8[Tensor, "3 h w"]:
        """The picture with a number."""
        split = self.split_of(row)
        return self.splits[split].image(row - self.offsets[split])

    def split_of(self, row: int) -> str:
        """The split of the picture with a number."""
        return next(split for split, start in reversed(self.offsets.items()) if row >= start)

    def tell_splits(self, metrics: Iterable[PictureMetric]) -> None:
        """Gives metrics that read one split the rows of its pictures; without such a split they read all."""
        for metric in metrics:
            start = self.offsets.get(metric.split)
            metric.seen = start if start is None else start + torch.arange(len(self.splits[metric.split]))

    def observed(self, rows: Sequence[int] | None = None) -> Iterator[Observed]:
        """Features of the pictures with these numbers, or of all, in parts."""
        numbers = torch.arange(self.count) if rows is None else torch.tensor(rows)
        features = self.features if rows is None else self.picked(numbers)
        return parts_of(Observed(features=features, rows=numbers, captions=torch.full_like(numbers, -1)))

    def picked(self, rows: Int[Tensor, "n"]) -> Features:
        """Features of the pictures with these numbers, as tables of their own."""
        parts = rows.split(ROWS_AT_ONCE)
        tables = ({name: table[part] for name, table in self.features.items()} for part in parts)
        return store_tables(tables, folder=self.folder)

    def _features(self, pictures: Pictures, look: FeaturePass, names: set[str]) -> Features:
        """Features of one split: what is kept is read, the rest is taken in one pass and kept."""
        identities = {
            name: identity_of(pictures.sha256, each.identity, name)
            for each in look.observers.pictures.values()
            for name in each.dims
            if name in names
        }
        kept: Features = {}

        def lacking() -> set[str]:
            """Reads what is kept; returns the names of the rest."""
            for name, identity in identities.items():
                if (table := self.cache.read(identity, rows=len(pictures))) is not None:
                    kept[name] = table
            return identities.keys() - kept.keys()

        missing = set().union(*look.ranks.together(lacking))  # a process may see another disk
        observers = look.observers.only(missing)

        def seen(_: int, numbers: Sequence[int]) -> Features:
            """The missing features of a batch."""
            features = observers.look(torch.stack([pictures.image(number) for number in numbers]))
            return {name: values for name, values in features.items() if name in missing}

        if missing:
            parts = look.over(range(len(pictures)), seen, title=self.title)
            for name, table in store_tables(parts, folder=self.folder).items():
                kept[name] = table
                if look.ranks.number == 0:
                    self.cache.write(identities[name], table)
        return {name: kept[name] for name in identities}


def identity_of(pictures: str, network: FeatureIdentity, name: str) -> dict[str, str]:
    """What a table of features depends on: pictures by their sha256, the network, which of its features."""
    return {"pictures": pictures, "network": json.dumps(asdict(network), sort_keys=True), "features": name}


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder with one safetensors file per table of features, named by everything that they depend on."""

    folder: Path | None = None  # None keeps nothing
    below: Path | None = None  # the folder that the user named, if it is one above

    @classmethod
    def at(cls, folder: str | None, *, root: str) -> "FeatureCache":
        """The cache in a folder, which is made, or none for an empty name.

        Below `root`, the data set, which may be somebody else's, no link is followed (LinkRefused).
        """
        if not folder:
            return cls()
        below = Path(root) if Path(folder).is_relative_to(root) else None
        with suppress(OSError):  # where nothing can be written, features are computed again each time
            make_folder(Path(folder), below=below)
        return cls(folder=Path(folder), below=below)

    def read(self, identity: Mapping[str, str], *, rows: int) -> Float[Tensor, "n d"] | None:
        """A table from its file; None where there is no file or, with a printed line, a damaged one.

        Every byte is compared with the checksum. UserError where the file says that it is another table.
        """
        path = self._path(identity)
        if path is None or not path.is_file():
            return None
        if (table := _whole(path, identity, rows=rows)) is None:
            print(f"{path} is damaged: its features are computed again")
        return table

    def write(self, identity: Mapping[str, str], table: Float[Tensor, "n d"]) -> None:
        """Keeps a table, whole or not at all; a folder that can't be written costs a printed line."""
        if (path := self._path(identity)) is None:
            return
        size = table.numel() * table.element_size()
        entry = {"dtype": "F32", "shape": list(table.shape), "data_offsets": [0, size]}
        metadata = {**identity, CHECKSUM: _checksum(table)}
        header = json.dumps({"__metadata__": metadata, "features": entry}).encode()
        header += b" " * (-len(header) % ALIGNMENT)
        try:  # written by hand: safetensors' own writer would copy a mapped table into memory
            with writing(path, below=self.below, size=size) as file:
                file.write(len(header).to_bytes(8, "little") + header)
                append(file, table)
        except OSError as error:
            print(f"features are not kept in {path.parent} ({error}): they are computed again next time")

    def _path(self, identity: Mapping[str, str]) -> Path | None:
        return self.folder and self.folder / f"{config_hash(dict(identity))[:24]}.safetensors"


def _whole(path: Path, identity: Mapping[str, str], *, rows: int) -> Float[Tensor, "n d"] | None:
    """The table of a file, or None if it is damaged; mapped, since it may be larger than memory."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, table = file.metadata() or {}, file.get_tensor("features")  # which maps the file
    except (SafetensorError, OSError):
        return None
    checksum = metadata.pop(CHECKSUM, None)  # none in files of earlier versions
    if metadata != dict(identity):
        other = next((key for key in identity if metadata.get(key) != identity[key]), "a field")
        raise UserError(
            f"{path} holds features of another protocol, their {other} differ: remove the file, and they are "
            f"computed again"
        )
    is_whole = table.dtype == torch.float32 and table.ndim == 2 and len(table) == rows
    return table if is_whole and checksum == _checksum(table) else None


def _checksum(table: Float[Tensor, "n d"]) -> str:
    digest = hashlib.sha256()
    for rows in table.split(ROWS_AT_ONCE):
        digest.update(rows.contiguous().numpy())
    return digest.hexdigest()
