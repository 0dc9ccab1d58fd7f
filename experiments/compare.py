"""Is B better than A, or is it the seed? `python -m experiments.compare A B`

A and B are folders of evaluations or runs, or lists of them that are separated by commas: trainings of one
recipe. Each line is a measure of B: better, worse or inconclusive, with the difference B - A, its interval
and what this contains. docs/compare.md has the statistics.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from data_prep.command_line import command_line, option
from experiments.intervals import estimate
from experiments.sides import FIXED, Side, read_side
from experiments.verdicts import Verdict, judged
from ldm import UserError
from ldm.evaluation.report import csv_text
from ldm.evaluation.results import check_one_protocol

HEADER = ("B is", "measure", "A", "B", "B - A", "interval", "which contains")
ONE_TRAINING = (
    "Each side is one training: the intervals hold for these two, and say nothing of other training seeds."
)


@dataclass(kw_only=True)
class Options:
    """What is compared, and how sure a verdict must be."""

    a: str = option("", "The first side: folders of evaluations or runs, separated by commas.", place=True)
    b: str = option("", "The second side.", place=True)
    level: float = option(0.95, "Probability with which all verdicts together are right if nothing differs.")
    ruler: bool = option(False, "Compare pictures that are generated in different ways, as by two samplers.")
    csv: bool = option(False, "Print the lines as csv.")


def main(options: Options) -> None:
    """Prints the verdicts.

    Raises:
        UserError: a level outside (0, 1); see `read_side` and `compared`.
    """
    if not 0 < options.level < 1:
        raise UserError(f"level={options.level} must lie between 0 and 1: 0.95 is usual")
    a, b = read_side(options.a), read_side(options.b)
    found = compared(a, b, level=options.level, hash_of="ruler" if options.ruler else "hash")
    lines = [HEADER, *table(found, a, b)]
    if options.csv:
        return print(csv_text(lines), end="")
    print(f"A: {described(a)}\nB: {described(b)}")
    if max(a.trainings, b.trainings) == 1:
        print(ONE_TRAINING)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print("\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines))
    print(
        f"{len(found)} measures at {options.level:.0%} together (Holm); intervals are at the level that "
        f"decided them."
    )
    if others := [name for name in a.measures if name in b.measures and name not in found]:
        print(
            f"Means over timesteps that are chosen in different ways are not compared: {', '.join(others)}."
        )
    if left_out := sorted({*a.undirected} | {*b.undirected}):
        print(f"Neither direction is better: {', '.join(left_out)}.")


def compared(a: Side, b: Side, *, level: float = 0.95, hash_of: str = "hash") -> dict[str, Verdict]:
    """The verdict on each measure that both sides have.

    Args:
        level: probability with which all of them are right if nothing differs.
        hash_of: "hash", or "ruler" where pictures may be generated in different ways.

    Raises:
        UserError: results of different protocols, or no measure in common.
    """
    documents = {**a.documents, **b.documents}
    check_one_protocol(documents, hash_of=hash_of)
    names = in_common(a, b)
    if not names:
        raise UserError(f"{a.name} and {b.name} have no measure in common: evaluate both under one protocol")
    same_seeds = len({document["protocol"]["hash"] for document in documents.values()}) == 1
    return judged(
        {name: estimate(a.measures[name], b.measures[name], same_seeds=same_seeds) for name in names},
        higher_is_better={name: a.measures[name].higher_is_better for name in names},
        level=level,
    )


def in_common(a: Side, b: Side) -> list[str]:
    """Names of the measures that both sides have.

    Of trainings that choose or weigh timesteps in different ways, only the loss at fixed timesteps is: the
    other losses are means over timesteps of their own.
    """
    ways = [document.get("trained") for document in (*a.documents.values(), *b.documents.values())]
    alike = all(way == ways[0] for way in ways)
    both = [name for name in a.measures if name in b.measures]
    return [name for name in both if alike or FIXED in name or not name.startswith("val/")]


def table(found: Mapping[str, Verdict], a: Side, b: Side) -> list[Sequence[str]]:
    """One line a measure, as text."""
    return [
        (
            each.word,
            name,
            *(f"{side.measures[name].value:.4g}" for side in (a, b)),
            f"{each.difference:+.3g}",
            "" if each.bounds is None else f"[{each.bounds[0]:+.3g}, {each.bounds[1]:+.3g}]",
            each.contains,
        )
        for name, each in found.items()
    ]


def described(side: Side) -> str:
    """A side's name and the number of its trainings."""
    count = side.trainings
    return f"{side.name} ({count} training{'s' if count > 1 else ''})"


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
