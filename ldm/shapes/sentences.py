"""What a sentence says of a scene: groups of equal shapes, and relations between groups.

`sentences` words a claim in five ways, some of which leave out sizes; `understood` reads any of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import get_args

from ldm import UserError
from ldm.construct import nearest
from ldm.shapes.scene import COLOURS, RADII, SHAPES, Relation, Shape, Size, Thing, holds

MOST = 4  # things in a scene, and groups
NUMBERS = ("one", "two", "three", "four")
ALSO = {"a": 1, "an": 1, "pair": 2, "trio": 3} | {word: k + 1 for k, word in enumerate(NUMBERS)}
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
RELATIONS: tuple[Relation, ...] = get_args(Relation)
WORDED: dict[Relation, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "inside": "inside",
}
OPPOSITE: dict[Relation, Relation] = {"left": "right", "right": "left", "above": "below", "below": "above"}
NOUNS = {word: shape for shape in SHAPES for word in (shape, PLURALS[shape])}


@dataclass(frozen=True, kw_only=True)
class Group:
    """Equal shapes: `size` is None where a sentence doesn't say it."""

    count: int
    size: Size | None
    colour: str
    shape: Shape

    def matches(self, thing: Thing) -> bool:
        """Whether a thing is one of the group."""
        return (thing.shape, thing.colour) == (self.shape, self.colour) and self.size in (None, thing.size)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a sentence says: these groups, nothing else, and the relations between them."""

    groups: tuple[Group, ...]
    relations: tuple[tuple[int, Relation, int], ...] = ()  # (number of a group, its relation to, another's)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Which parts of a claim a picture fulfils; `everything` needs all of them, and sizes that are said."""

    count: bool
    colours: bool
    shapes: bool
    relations: bool
    everything: bool


def judge(claim: Claim, things: Sequence[Thing] | None) -> Verdict:
    """Holds what a picture shows against a claim.

    Args:
        things: those in the picture; None where it is unreadable, which fulfils nothing.
    """
    if things is None:
        return Verdict(count=False, colours=False, shapes=False, relations=False, everything=False)
    count = len(things) == sum(group.count for group in claim.groups)
    members = [[thing for thing in things if group.matches(thing)] for group in claim.groups]
    whole = count and all(
        len(found) == group.count for found, group in zip(members, claim.groups, strict=True)
    )
    # absent shapes stand in no relation; `all` of no pairs would be true
    related = all(
        members[one] and members[other] and holds(relation, members[one], members[other])
        for one, relation, other in claim.relations
    )
    return Verdict(
        count=count,
        colours=sorted(each.colour for each in things) == _repeated(claim, "colour"),
        shapes=sorted(each.shape for each in things) == _repeated(claim, "shape"),
        relations=related,
        everything=whole and related,
    )


def _repeated(claim: Claim, attribute: str) -> list[str]:
    return sorted(getattr(group, attribute) for group in claim.groups for _ in range(group.count))


def sentences(claim: Claim, random: Random) -> list[str]:
    """Five sentences of a claim, of differing detail and wording."""
    bare = replace(claim, groups=tuple(replace(group, size=None) for group in claim.groups))
    if len(claim.groups) == 1:
        full, short = claim.groups[0], bare.groups[0]
        return [
            noun(full),
            f"there {'is' if full.count == 1 else 'are'} {noun(full)}",
            noun(short, casual=True),
            f"a picture of {noun(short, casual=random.random() < 0.5)}",
            f"{noun(full, casual=True)} and nothing else",
        ]
    return [
        chain(claim),
        f"there is {chain(claim)}" if claim.groups[0].count == 1 else f"there are {chain(claim)}",
        and_chain(bare).removeprefix("a "),
        chain(turned(bare)),
        f"a picture of {chain(turned(claim) if random.random() < 0.5 else claim)}",
    ]


def noun(group: Group, *, casual: bool = False) -> str:
    """A group in words: "three small red stars", or "a trio of small red stars" where it is casual."""
    of_size = f"{group.size} " if group.size else ""
    name = f"{of_size}{group.colour} {group.shape if group.count == 1 else PLURALS[group.shape]}"
    if group.count == 1:
        return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    if casual and group.count < MOST:
        return f"a {'pair' if group.count == 2 else 'trio'} of {name}"
    # a generated picture may show more shapes than any scene has
    return f"{NUMBERS[group.count - 1] if group.count <= len(NUMBERS) else group.count} {name}"


def chain(claim: Claim) -> str:
    """The groups in turn, each in its relation to the next: "a blue ring above two green squares"."""
    words = [noun(claim.groups[0])]
    for (_, relation, other), group in zip(claim.relations, claim.groups[1:], strict=True):
        joint = "" if other == 1 else "which is " if claim.groups[other - 1].count == 1 else "which are "
        words.append(f"{joint}{WORDED[relation]} {noun(group)}")
    return " ".join(words)


def and_chain(claim: Claim) -> str:
    """The same, from the second group's place: "a blue ring, and below it a pair of green squares"."""
    (_, relation, _), (first, second) = claim.relations[0], claim.groups
    it = "it" if first.count == 1 else "them"
    if relation == "inside":
        return f"{noun(first, casual=True)}, and around {it} {noun(second, casual=True)}"
    return f"{noun(first, casual=True)}, and {WORDED[OPPOSITE[relation]]} {it} {noun(second, casual=True)}"


def turned(claim: Claim) -> Claim:
    """The same claim, from the second group; "inside" has no opposite and stays as it is."""
    (_, relation, _), (first, second) = claim.relations[0], claim.groups
    if relation == "inside":
        return claim
    return Claim(groups=(second, first), relations=((0, OPPOSITE[relation], 1),))


_BETWEEN = re.compile(
    r"(?:,? and )?(?:which (?:is|are) )?(?:to the )?"
    r"(?P<relation>left of|right of|above|below|inside|around)"
    r"(?P<it> it| them)? "
)
_START = re.compile(r"(there (is|are) |a picture of )")
# the number is optional and lazy: "small red star" has none, and "small" would be read as one
_GROUP = re.compile(
    r"(?:(?:a )?(?P<pair>pair|trio) of |(?P<number>[a-z]+) )??"
    r"(?:(?P<size>small|large) )?(?P<colour>[a-z]+) (?P<noun>[a-z]+)"
)


def understood(sentence: str) -> Claim:
    """What a sentence says.

    Raises UserError where it has a word or an order of words that the grammar doesn't know; the nearest is
    named.
    """
    text = _START.sub("", " ".join(sentence.lower().split()).rstrip("."), count=1).removesuffix(
        " and nothing else"
    )
    groups, relations, place = [], [], 0
    for match in [*_BETWEEN.finditer(text), None]:
        groups.append(_group(text[place : match.start() if match else None].strip(" ,"), sentence))
        if match:
            word = match["relation"].removesuffix(" of")
            here, there = len(groups) - 1, len(groups)
            if match["it"]:  # "A, and below it B": B is below A
                here, there = (here, there) if word == "around" else (there, here)
                word = "inside" if word == "around" else word
            elif word == "around":
                here, there, word = there, here, "inside"
            relations.append((here, word, there))
            place = match.end()
    if sum(group.count for group in groups) > MOST:
        raise UserError(f"{sentence!r} asks for more than {MOST} shapes")
    return Claim(groups=tuple(groups), relations=tuple(relations))


def _group(text: str, sentence: str) -> Group:
    match = _GROUP.fullmatch(text)
    if match is None:
        raise UserError(
            f"{sentence!r} can't be checked: {text!r} is not a number, a size, a colour and a shape, "
            "such as 'two small red stars'"
        )
    number = match["pair"] or match["number"] or "one"
    for word, known, kind in (
        (match["colour"], COLOURS, "colour"),
        (match["noun"], NOUNS, "shape"),
        (number, ALSO, "number"),
    ):
        if word not in known:
            raise UserError(
                f"{sentence!r} can't be checked: there is no {kind} {word!r}{nearest(word, known)}"
            )
    size = match["size"]
    assert size is None or size in RADII
    return Group(count=ALSO[number], size=size, colour=match["colour"], shape=NOUNS[match["noun"]])
