"""Writes shards of shapes: `python -m data_prep.shapes [out=data/shapes] [count=20000] [size=64] [seed=0]`.

A picture shows one to four shapes; each has five captions. Some colours of shapes, some counts of shapes and
some relations between shapes never occur in the splits train and val: the seed decides which, and they are
listed in held_out.json. The other splits are for testing: `seen` (new scenes of what training shows),
`held_out` (scenes with something that it never shows) and `long` (three groups: sentences longer than any in
training).
"""

import io
import json
import sys
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data_prep.command_line import command_line, option
from data_prep.emoji import existing
from data_prep.making import write_shards
from ldm import UserError
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import Sample
from ldm.io.reading import read_json
from ldm.io.writing import write
from ldm.randomness.seeds import check_seed
from ldm.shapes.scene import (
    COLOURS,
    FINE,
    HOLLOW,
    RADII,
    SHAPES,
    UNIT,
    Relation,
    Scene,
    Thing,
    check_side,
    draw,
    holds,
    reach,
)
from ldm.shapes.sentences import MOST, OPPOSITE, Claim, Group, chain, sentences

HELD_OUT = "held_out.json"
SPLITS = {
    "val": 0.02,
    "seen": 0.02,
    "held_out": 0.02,
    "long": 0.02,
}  # shares of the pictures; train has the rest
GAP = 3.0  # pixels of a picture of UNIT between two shapes
APART = 4.0  # such pixels between the centres of two groups that stand in a relation
BORDER = 2.5  # such pixels between a shape and the border
ATTEMPTS, RESTARTS = 25, 15  # places that are tried for a shape, and for a whole scene


@dataclass(kw_only=True)
class Options:
    """Where the shards go, how many pictures of which size, and the seed of all of them."""

    out: str = option("data/shapes", "Folder for the shards and their index.")
    count: int = option(20000, "Number of pictures of all splits together.")
    size: int = option(64, "Side of a picture, in pixels.")
    seed: int = option(0, "Seed of the scenes, and of what training never shows.")


class HeldOut(NamedTuple):
    """What the splits train and val never show.

    Attributes:
        colours: (colour, shape).
        counts: (number, shape) of a group.
        relations: (shape, relation, shape); "right" and "below" are the other shape's "left" and "above".
    """

    colours: tuple[tuple[str, str], ...]
    counts: tuple[tuple[int, str], ...]
    relations: tuple[tuple[str, Relation, str], ...]

    @classmethod
    def of(cls, seed: int) -> "HeldOut":
        """One colour of each shape, one count of half of them, and a tenth of the relations."""
        random = Random(f"shapes held out {seed}")
        shapes, colours = list(SHAPES), list(COLOURS)
        random.shuffle(shapes)
        random.shuffle(colours)
        pairs = [(one, other) for one in SHAPES for other in SHAPES]
        relations: list[tuple[str, Relation, str]] = []
        for relation, number in (("left", 6), ("above", 6), ("inside", 2)):
            known = [pair for pair in pairs if relation != "inside" or can_contain(pair)]
            relations += [(one, relation, other) for one, other in random.sample(known, number)]
        return cls(
            colours=tuple(zip(colours, shapes, strict=True)),
            counts=tuple((random.randint(2, MOST), shape) for shape in shapes[: len(shapes) // 2]),
            relations=tuple(relations),
        )

    def found_in(self, groups: tuple[Group, ...], things: list[list[Thing]]) -> bool:
        """Whether a scene shows any of it, said in its captions or not."""
        if any((g.colour, g.shape) in self.colours or (g.count, g.shape) in self.counts for g in groups):
            return True
        return any(
            (groups[i].shape, relation, groups[j].shape) in self.relations
            and holds(relation, things[i], things[j])
            for pair in combinations(range(len(groups)), 2)
            for i, j in (pair, pair[::-1])
            for relation in ("left", "above", "inside")
        )


def main(options: Options) -> None:
    """Writes the shards, index last; leaves a complete set alone.

    Raises:
        UserError: a count below 100, or a size that the reader can't resolve.
        DataError: another complete set is there.
    """
    if options.count < 100:
        raise UserError(f"count={options.count} must be at least 100: five splits are made of the pictures")
    check_side(options.size)
    check_seed(options.seed)
    root, held_out = Path(options.out), HeldOut.of(options.seed)
    facts = {"count": options.count, "size": options.size, "seed": options.seed, **held_out._asdict()}
    facts = json.loads(json.dumps(facts))  # tuples as the file has them
    if (found := existing(root)) is not None:
        if not (root / HELD_OUT).is_file() or read_json(root / HELD_OUT) != facts:
            raise DataError(
                f"{root} holds a complete set of other pictures, or of another count, size or seed: "
                "choose another out= or remove it"
            )
        print(f"{root} is complete already: {sum(shard.count for shard in found.shards)} pictures")
        return
    root.mkdir(parents=True, exist_ok=True)
    write(root / HELD_OUT, json.dumps(facts, indent=1))
    numbers = {split: round(share * options.count) for split, share in SPLITS.items()}
    numbers = {"train": options.count - sum(numbers.values()), **numbers}
    shards = []
    with tqdm(total=options.count, desc="shapes", unit="picture") as bar:
        for split, number in numbers.items():
            samples = (sample(split, k, options, held_out) for k in range(number))
            for shard in write_shards(samples, root=root, split=split):
                shards.append(shard)
                bar.update(shard.count)
    ShardIndex(root=root, name="shapes", shards=tuple(shards)).save()
    print(f"{root}: " + ", ".join(f"{number} pictures in {split}" for split, number in numbers.items()))


def sample(split: str, number: int, options: Options, held_out: HeldOut) -> Sample:
    """One picture of a split with its captions; it follows from its number and the seed alone."""
    random = Random(f"shapes {options.seed} {split} {number}")
    claim, scene = composed(random, split, held_out)
    buffer = io.BytesIO()
    Image.fromarray(draw(scene, side=options.size)).save(buffer, format="PNG")
    texts = long_sentences(claim, random) if split == "long" else sentences(claim, random)
    return Sample(
        key=f"{split}_{number:06d}",
        image=buffer.getvalue(),
        extension="png",
        texts=texts,
        comment_nos=list(range(len(texts))),
        metadata={"claim": asdict(claim), "scene": asdict(scene)},
    )


def composed(random: Random, split: str, held_out: HeldOut) -> tuple[Claim, Scene]:
    """A claim that belongs into a split, and a scene of which it is true."""
    while True:
        claim = long_claim(random) if split == "long" else short_claim(random)
        things = arranged(claim, random)
        if things is not None and held_out.found_in(claim.groups, things) == (split == "held_out"):
            flat = tuple(thing for group in things for thing in group)
            return claim, Scene(things=flat, corners=backdrop(random))


def short_claim(random: Random) -> Claim:
    """One group, or two in a relation."""
    kind = random.random()
    if kind < 0.4:
        return Claim(groups=(group(random, most=MOST),))
    if kind < 0.5:
        inner, outer = random.choice(list(SHAPES)), random.choice(list(HOLLOW))
        colours = random.sample(list(COLOURS), 2)
        if not can_contain((inner, outer)):
            return short_claim(random)
        groups = (
            Group(count=1, size="small", colour=colours[0], shape=inner),
            Group(count=1, size="large", colour=colours[1], shape=outer),
        )
        return Claim(groups=groups, relations=((0, "inside", 1),))
    groups = different(random, 2)
    return Claim(groups=groups, relations=((0, random.choice(list(OPPOSITE)), 1),))


def long_claim(random: Random) -> Claim:
    """Three groups, the first in a relation to the second, this one to the third."""
    relations = random.choices(list(OPPOSITE), k=2)
    return Claim(groups=different(random, 3), relations=((0, relations[0], 1), (1, relations[1], 2)))


def different(random: Random, number: int) -> tuple[Group, ...]:
    """Groups that differ in colour or shape and have at most four things together."""
    while True:
        groups = tuple(group(random, most=MOST - number + 1) for _ in range(number))
        looks = {(each.colour, each.shape) for each in groups}
        if len(looks) == number and sum(each.count for each in groups) <= MOST:
            return groups


def group(random: Random, *, most: int) -> Group:
    """A group of equal shapes."""
    return Group(
        count=random.randint(1, most),
        size=random.choice(list(RADII)),
        colour=random.choice(list(COLOURS)),
        shape=random.choice(list(SHAPES)),
    )


def can_contain(pair: tuple[str, str]) -> bool:
    """Whether the first shape, small, can be inside the second, large."""
    return pair[1] in HOLLOW and pair[0] not in HOLLOW


def long_sentences(claim: Claim, random: Random) -> list[str]:
    """Five sentences of three groups, told from either end, with all that is known of them."""
    ends = [chain(claim), chain(reversed_chain(claim))]
    starts = ["", "there is " if claim.groups[0].count == 1 else "there are ", "a picture of "]
    told = [f"{start}{ends[0]} and nothing else" for start in starts]
    told += [f"{start}{ends[1]} and nothing else" for start in (starts[0], starts[2])]
    random.shuffle(told)
    return told


def reversed_chain(claim: Claim) -> Claim:
    """The same claim told from its last group."""
    last = len(claim.groups) - 1
    relations = tuple((last - other, OPPOSITE[how], last - one) for one, how, other in claim.relations[::-1])
    return Claim(groups=claim.groups[::-1], relations=relations)


def arranged(claim: Claim, random: Random) -> list[list[Thing]] | None:
    """Places for all things of a claim, by group; None where some attempts find none."""
    if claim.relations and claim.relations[0][1] == "inside":
        x, y = somewhere(reach(claim.groups[1].shape, "large"), random)
        return [[thing_at(each, x, y)] for each in claim.groups]
    for _ in range(RESTARTS):
        things: list[list[Thing]] = []
        for number, each in enumerate(claim.groups):
            things.append([])
            for _ in range(each.count):
                tries = (
                    thing_at(each, *somewhere(reach(each.shape, each.size), random)) for _ in range(ATTEMPTS)
                )
                if (
                    thing := next((thing for thing in tries if fits(claim, things, number, thing)), None)
                ) is None:
                    break
                things[-1].append(thing)
            if len(things[-1]) < each.count:
                break
        else:
            return things
    return None


def thing_at(each: Group, x: float, y: float) -> Thing:
    """One of a group's things at a place."""
    return Thing(shape=each.shape, colour=each.colour, size=each.size, x=x, y=y)


def somewhere(far: float, random: Random) -> tuple[float, float]:
    """A place, on a fine step, at which a shape that reaches so far keeps clear of the border."""
    least = far + BORDER
    across, down = (
        round((least + random.random() * (UNIT - 2 * least)) * FINE) / FINE / UNIT for _ in range(2)
    )
    return across, down


def fits(claim: Claim, things: list[list[Thing]], number: int, thing: Thing) -> bool:
    """Whether a thing of the group `number` has room among those that are placed, and its relations."""
    own = reach(thing.shape, thing.size) + GAP
    for k, others in enumerate(things):
        relation = next((how for i, how, j in claim.relations if (i, j) == (k, number)), None)
        for other in others:
            far = (own + reach(other.shape, other.size)) / UNIT
            if (thing.x - other.x) ** 2 + (thing.y - other.y) ** 2 < far**2:
                return False
            if relation and not clearly(relation, other, thing):
                return False
    return True


def clearly(relation: Relation, one: Thing, other: Thing) -> bool:
    """Whether a relation holds by more than a matter of taste."""
    across, down = (other.x - one.x) * UNIT, (other.y - one.y) * UNIT
    return {"left": across, "right": -across, "above": down, "below": -down}[relation] >= APART


def backdrop(random: Random) -> tuple[tuple[float, float, float], ...]:
    """A tinted white or black, plain or shaded: a corner's colour, and its change to the right and down."""
    light, plain = random.random() < 0.5, random.random() < 0.5
    start = [(242 if light else 14) + random.uniform(-6, 6) for _ in range(3)]
    across, down = (0.0 if plain else random.uniform(0, 12) * (-1 if light else 1) for _ in range(2))
    return (tuple(start), (across,) * 3, (down,) * 3)


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
