"""From rows of captions and places of pictures to pairs: what can't be paired is named, never guessed.

How a name that a caption file gives otherwise than the folder does is matched: docs/data_rules.md.
"""

import posixpath
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.parquet import Cell
from data_prep.splits import join_splits, key_of
from data_prep.tally import LeftOut, Tally
from ldm.data.decode import MAX_BYTES
from ldm.data.tars import UnusableCaption, usable_caption

SEVERAL = "several pictures or captions of one name"


class Place(NamedTuple):
    """Where the bytes of a picture lie: a file, or `size` bytes of one."""

    path: str
    size: int
    offset: int = 0

    @classmethod
    def of(cls, path: Path) -> "Place":
        """All of a file."""
        return cls(str(path), path.stat().st_size)

    def read(self) -> bytes:
        """The bytes. Raises LeftOut: more than MAX_BYTES, or not there (any more)."""
        if self.size > MAX_BYTES:
            raise LeftOut("too many bytes")
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                return stream.read(self.size)
        except OSError as error:
            raise LeftOut("can't be read") from error


class Row(NamedTuple):
    """One caption as a source has it, judged by nobody yet; a number below 0 means: in order."""

    picture: str
    number: int
    text: object
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A picture with at least one caption, before the picture is read."""

    key: str
    name: str
    place: Place | Cell
    texts: list[str]
    comment_nos: list[int]


@dataclass(kw_only=True)
class Collection:
    """What a source holds: pairs in the order of their keys, and how they were found.

    Attributes:
        entries: the pairs.
        num_pictures, num_captions: how many the source names, those left out included.
        forms: the forms in which the source was met: one sentence each.
        splits: key -> split, where the source itself says so.
        tally: what was left out or healed on the way.
    """

    entries: list[Entry]
    num_pictures: int
    num_captions: int
    forms: list[str]
    tally: Tally
    splits: dict[str, str] = field(default_factory=dict)

    def sentence(self) -> str:
        """The forms, and how many captions a picture has."""
        numbers = [len(entry.texts) for entry in self.entries] or [0]
        fewest, most = min(numbers), max(numbers)
        count = f"{fewest} to {most}" if fewest < most else f"{most}"
        return f"{'; '.join(self.forms)}; {count} caption{'s' * (most != 1)} a picture"


def pair(
    rows: Iterable[Row],
    pictures: Mapping[str, Place | Cell],
    *,
    forms: list[str],
    tally: Tally,
    ambiguous: Container[str] = (),
) -> Collection:
    """Brings captions and pictures of the same name together.

    A caption that is there twice under one number is left out. Captions without numbers are numbered in
    order, and equal ones are kept: two people may write the same.

    Args:
        ambiguous: names of pictures of which several share one caption; all of them are left out, by name.
    """
    named: dict[str, list[Row]] = {}
    for row in rows:
        named.setdefault(row.picture, []).append(row)
    matched, sentences = match_names(named, pictures)
    captions = {matched.get(name, name): own for name, own in named.items()}
    for name in sorted(captions.keys() - pictures.keys()):
        tally.leave_picture("captions without a picture", name)
    entries: dict[str, Entry] = {}
    for name in sorted(pictures):
        try:
            if name in ambiguous:
                raise LeftOut(SEVERAL)
            entry = _entry(name, pictures[name], captions.get(name, []), tally)
            if entry.key in entries:
                raise LeftOut("key of another picture")
            entries[entry.key] = entry
        except LeftOut as left:
            tally.leave_picture(str(left), name)
    keys = {entry.name: key for key, entry in entries.items()}
    split = ((row.split, name) for name, own in captions.items() if name in keys for row in own if row.split)
    return Collection(
        entries=[entries[key] for key in sorted(entries)],
        num_pictures=len(captions.keys() | pictures.keys()),
        num_captions=sum(map(len, captions.values())),
        forms=[*forms, *sentences],
        splits=join_splits((each, [keys[name]], name) for each, name in split),
        tally=tally,
    )


def _entry(name: str, place: Place, rows: list[Row], tally: Tally) -> Entry:
    if not rows:
        raise LeftOut("picture without captions")
    kept: dict[tuple[int, str], None] = {}
    for order, row in enumerate(rows):
        number = row.number if row.number >= 0 else order
        caption = f"{name}#{number}"
        try:
            text, healed = usable_caption(row.text)
        except UnusableCaption as unusable:
            tally.leave_caption(str(unusable), caption)
            continue
        for kind in healed:
            tally.heal(kind, caption)
        if (number, text) in kept:
            tally.leave_caption("repeated row", caption)
        kept[number, text] = None
    if not kept:
        raise LeftOut("no usable caption")
    numbers, texts = zip(*sorted(kept, key=lambda item: item[0]), strict=True)
    return Entry(key=key_of(name), name=name, place=place, texts=list(texts), comment_nos=list(numbers))


class Match(NamedTuple):
    """A picture that a name means, the rule by which it does, and the start of the name that is dropped."""

    picture: str
    rule: str
    dropped: str = ""


class Names:
    """The pictures of a folder, by all the ways to name them."""

    def __init__(self, pictures: Iterable[str]) -> None:
        self.whole = set(pictures)
        self.stems: dict[str, list[str]] = {}
        self.ends: dict[str, list[str]] = {}
        for picture in sorted(self.whole):
            stem = picture.rpartition(".")[0]
            self.stems.setdefault(stem, []).append(picture)
            for name in (picture, stem):
                self.ends.setdefault(posixpath.basename(name), []).append(picture)

    def match(self, name: str) -> Match | None:
        """The one picture that a name means; the longest end of its path decides."""
        path = posixpath.normpath(name.replace("\\", "/"))
        parts = path.lstrip("/").split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            dropped = path.removesuffix(end)
            rule = "the end of the path" if dropped else "the path"
            if end in self.whole:
                return Match(end, rule, dropped)
            if len(found := self.stems.get(end, [])) == 1:
                return Match(found[0], f"{rule}, without the extension", dropped)
        deeper = [
            picture
            for picture in self.ends.get(parts[-1], [])
            if f"/{picture}".endswith(f"/{path}") or f"/{picture.rpartition('.')[0]}".endswith(f"/{path}")
        ]
        return Match(deeper[0], "the file in its folder") if len(deeper) == 1 else None


def match_names(named: Iterable[str], pictures: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """(name -> picture, a sentence for each rule that matched), of the names that no picture has as it is."""
    named, pictures = set(named), set(pictures)
    if named <= pictures:
        return {}, []
    names = Names(pictures - named)
    found = {name: match for name in sorted(named - pictures) if (match := names.match(name))}
    starts = Counter(match.dropped for match in found.values() if match.dropped).most_common(2)
    if len(starts) == 2 and starts[0][1] == starts[1][1]:
        starts = []
    kept = ("", *(start for start, _ in starts[:1]))
    found = {name: match for name, match in found.items() if match.dropped in kept}
    claims = Counter(match.picture for match in found.values())
    found = {name: match for name, match in found.items() if claims[match.picture] == 1}
    sentences = []
    for rule, number in Counter(match.rule for match in found.values()).items():
        name, match = next((name, match) for name, match in found.items() if match.rule == rule)
        sentences.append(f"{number} names matched by {rule}: {match.picture} for {name}")
    return {name: match.picture for name, match in found.items()}, sentences
