"""Which captions pictures are generated from, chosen by a hash or read from a list, and their requests."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from ldm import UserError
from ldm.data.texts import read_columns
from ldm.io.reading import hash_file
from ldm.metrics.picture_metric import PictureMetric

ELSEWHERE = -1  # row of a picture whose right real picture isn't among the real ones


class Caption(NamedTuple):
    """A caption drawn for measuring, and the picture that it belongs to.

    Attributes:
        row: the picture's number among all real pictures, or `ELSEWHERE`.
    """

    text: str
    key: str
    row: int


class Request(NamedTuple):
    """One picture to make.

    Attributes:
        row: number of the right real picture.
        caption: number of the caption in its set.
        name: of its file in a folder of pictures, without the end: `<set>/<key of the right picture>`; the
            second picture of a key is `<set>/<key>_1`, the third `<set>/<key>_2`.
    """

    prompt: str
    seed: int
    row: int
    caption: int
    name: str


@dataclass(frozen=True, kw_only=True)
class CaptionSet:
    """Captions of a split, how many pictures each gets, and what is measured on them.

    Attributes:
        split: whose captions; null takes those of the folder that is measured.
        captions: how many, drawn by seed; null takes all.
        unit: "picture" draws pictures, and one caption of each; "caption" draws among all captions, so that a
            picture can come several times.
        samples: pictures a caption, each with a seed of its own.
        metrics: names in the config's `metric`.
        file: a csv with the columns key and caption that is read instead of drawing; once read, its sha256.
        sha256: of the captions, see `digest`; another list is refused. Null takes any.
        few: metrics that may be taken of fewer pictures than they want; their rows say so.
    """

    name: str
    split: str | None
    captions: int | None
    unit: Literal["picture", "caption"] = "picture"
    samples: int = 1
    metrics: tuple[str, ...]
    file: str | None = None
    sha256: str | None = None
    few: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("metrics", "few"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.samples < 1 or (self.captions is not None and self.captions < 1):
            raise UserError(
                f"caption set {self.name!r}: captions={self.captions} and samples={self.samples} "
                f"must be at least 1"
            )
        if self.unit not in ("picture", "caption"):
            raise UserError(f"caption set {self.name!r}: unit={self.unit!r} must be picture or caption")

    def draw(
        self, keys: Sequence[str], texts: Sequence[Sequence[str]], *, seed: int, offset: int
    ) -> list[Caption]:
        """The captions, in the order of the draw: a larger draw begins with the smaller one.

        Pictures and captions are drawn by a hash of seed and key: the draw depends neither on the order of
        the pictures nor on a library's generator.

        Args:
            keys, texts: of the split's pictures.
            offset: number of the split's first picture among all real pictures.

        Raises:
            UserError: the split has fewer pictures or captions.
        """
        pairs = self._pictures(keys, texts, seed) if self.unit == "picture" else self._all(keys, texts, seed)
        wanted = len(pairs) if self.captions is None else self.captions
        if wanted > len(pairs):
            raise UserError(
                f"caption set {self.name!r} wants {wanted} captions, split {self.split!r} has {len(pairs)} "
                f"{self.unit}s: ask for fewer, or for all of them with captions: null"
            )
        return [
            Caption(text=texts[number][place], key=keys[number], row=offset + number)
            for number, place in pairs[:wanted]
        ]

    def _pictures(
        self, keys: Sequence[str], texts: Sequence[Sequence[str]], seed: int
    ) -> list[tuple[int, int]]:
        order = sorted(range(len(keys)), key=lambda number: _draw(seed, self.name, keys[number]))
        places = [_draw(seed, f"{self.name}/text", keys[number]) % len(texts[number]) for number in order]
        return list(zip(order, places, strict=True))

    def _all(self, keys: Sequence[str], texts: Sequence[Sequence[str]], seed: int) -> list[tuple[int, int]]:
        pairs = [(number, place) for number, own in enumerate(texts) for place in range(len(own))]
        return sorted(pairs, key=lambda pair: _draw(seed, self.name, f"{keys[pair[0]]}/{pair[1]}"))

    def too_few(self, metrics: Mapping[str, PictureMetric], *, generated: int, real: int | None) -> set[str]:
        """Names of the metrics that are taken of fewer pictures, on either side, than they want.

        Args:
            metrics: by the names that `few` uses.
            generated, real: pictures on each side; null where nobody knows how many are real.

        Raises:
            UserError: such a metric that `few` doesn't name.
        """
        found = set()
        for name, metric in metrics.items():
            count = generated if real is None or not metric.against_real else min(generated, real)
            if count >= metric.minimum_images:
                continue
            if name not in self.few:
                raise UserError(
                    f"caption set {self.name!r} has {count} pictures for {name!r}, which wants "
                    f"{metric.minimum_images}: take more, or name it in the set's few: [{name}] to have it "
                    f"with a label"
                )
            found.add(name)
        return found

    def check(self, captions: Sequence[Caption]) -> None:
        """Refuses another list than the protocol's.

        Raises:
            UserError: `sha256` is stated and is not that of the captions.
        """
        if self.sha256 is not None and digest(captions) != self.sha256:
            raise UserError(
                f"caption set {self.name!r}: its {len(captions)} captions have sha256 "
                f"{digest(captions)[:12]}, the protocol wants {self.sha256[:12]}: use the data set and the "
                f"list that it was written for"
            )


def requests_for(
    captions: Sequence[Caption], *, samples: int, seed_base: int, folder: str = ""
) -> list[Request]:
    """`samples` pictures a caption, caption by caption; no two share a seed or a name.

    Args:
        folder: what the names begin with, the set's name.
    """
    requests: list[Request] = []
    seen: Counter[str] = Counter()
    for number, caption in enumerate(captions):
        for sample in range(samples):
            earlier = seen[caption.key]
            seen[caption.key] += 1
            requests.append(
                Request(
                    prompt=caption.text,
                    seed=seed_base + number * samples + sample,
                    row=caption.row,
                    caption=number,
                    name=f"{folder}/{caption.key}_{earlier}" if earlier else f"{folder}/{caption.key}",
                )
            )
    return requests


def identified(caption_set: CaptionSet, captions: Iterable[Caption]) -> CaptionSet:
    """A set with the sha256 of its captions, and of its list of captions in place of the path."""
    file = None if caption_set.file is None else hash_file(Path(caption_set.file))
    return replace(caption_set, file=file, sha256=digest(captions))


def digest(captions: Iterable[Caption]) -> str:
    """sha256 of a list of captions with the keys of their pictures, in their order."""
    lines = "".join(f"{caption.key}\t{caption.text}\n" for caption in captions)
    return hashlib.sha256(lines.encode()).hexdigest()


def read_captions(path: Path, *, rows: dict[str, int] | None) -> list[Caption]:
    """The captions of a csv with the columns key and caption.

    Args:
        rows: number of each real picture by its key; null where there are none, and any key will do.

    Raises:
        UserError: no such file, other columns, or a key that no real picture has.
    """
    if not path.is_file():
        raise UserError(f"there is no caption list {path}: write one with the columns key and caption")
    lines = read_columns(path, ("key", "caption"))
    if rows is None:
        return [Caption(text=text, key=key, row=ELSEWHERE) for key, text in lines]
    unknown = [key for key, _ in lines if key not in rows]
    if unknown:
        raise UserError(
            f"caption list {path}: {len(unknown)} of its {len(lines)} keys, {unknown[0]!r} first, name no "
            f"picture of protocol.splits: use the list of this data set"
        )
    return [Caption(text=text, key=key, row=rows[key]) for key, text in lines]


def _draw(seed: int, stream: str, key: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(f"{seed}/{stream}/{key}".encode(), digest_size=8).digest(), "little"
    )
