"""From rows of captions and places of pictures to pairs: what can't be paired is named, never guessed."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.matching import match_names
from data_prep.parquet import Cell
from data_prep.splits import join_splits, key_of
from data_prep.tally import LeftOut, Tally
from data_prep.texts import clean_caption
from ldm.data.decode import MAX_BYTES

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
        """The bytes.

        Raises:
            LeftOut: more than MAX_BYTES, or not there (any more).
        """
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
            text = clean_caption(row.text, name=caption, tally=tally)
            if (number, text) in kept:
                raise LeftOut("repeated row")
            kept[number, text] = None
        except LeftOut as left:
            tally.leave_caption(str(left), caption)
    if not kept:
        raise LeftOut("no usable caption")
    numbers, texts = zip(*sorted(kept, key=lambda item: item[0]), strict=True)
    return Entry(key=key_of(name), name=name, place=place, texts=list(texts), comment_nos=list(numbers))
