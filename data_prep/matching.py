"""Names that a caption file gives otherwise than the folder does, where only one picture can be meant.

| the caption file names          | the folder has  | rule                                     |
| ------------------------------- | --------------- | ---------------------------------------- |
| `/data/flickr/i/p0.jpg`         | `i/p0.jpg`      | the end of the path names a picture      |
| `.\\i\\p0.jpg`                    | `i/p0.jpg`      | backslashes and dots of a path           |
| `p0.jpg`                        | `i/p0.jpg`      | the picture lies in a folder             |
| any of these without `.jpg`     | `i/p0.jpg`      | without the extension                    |

The start of a path that is dropped is the same for all names: the one by which most of them match. A name
that could mean several pictures, and several names that could mean one, match none.
"""

import posixpath
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple


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
        sentences.append(f"{number} names matched by {rule}: {name} is {match.picture}")
    return {name: match.picture for name, match in found.items()}, sentences
