"""Three proofs that `experiments.compare` is right, on short trainings of emoji.

    python -m data_prep.emoji && python -m benchmarks.verdicts [--folder runs/verdicts] [--count 8]

1. A change that is none, another order of the data at the same settings, is inconclusive: in each resampling,
   five of the pairs of trainings are chosen, and in each pair it is chance which training is on which side.
2. A learning rate ten times too low is worse.
3. The variance of each measure of five trainings is split into that between them and that of sampling.

Each training and its evaluation take some twenty seconds of one core. What is in the folder already is not
made again, so that an interrupted benchmark resumes.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.verdicts.trainings import results_of, trainings
from experiments.compare import compared
from experiments.intervals import variance_split
from experiments.sides import Side, side_of
from ldm.commands.answers import answer_errors

FIVE = 5  # trainings on a side
RESAMPLINGS = 200
Documents = Mapping[str, Mapping[str, Any]]  # by recipe and seed


def main() -> None:
    """Makes what is missing, and prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/verdicts"))
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    answer_errors(lambda: prove(options.folder, data=options.data, count=options.count))


def prove(folder: Path, *, data: str, count: int) -> None:
    """The proofs on `count` pairs of trainings."""
    wanted = trainings(count, slow=FIVE)
    found = dict(zip((each.name for each in wanted), results_of(wanted, folder, data=data), strict=True))
    base, order, slow = (
        {name: each for name, each in found.items() if name.startswith(f"{recipe}_")}
        for recipe in ("base", "order", "slow")
    )
    print_null(base, order)
    print_slow(base, slow)
    print_split(base)


def print_null(base: Documents, order: Documents) -> None:
    """How often a change that is none is inconclusive, for each measure, and for all of them at once."""
    rng, words, clean = np.random.default_rng(0), Counter[tuple[str, str]](), 0
    for _ in range(RESAMPLINGS):
        chosen = rng.choice(len(base), size=FIVE, replace=False)
        swapped = rng.random(FIVE) < 0.5
        sides: list[dict[str, Any]] = [{}, {}]
        for seed, swap in zip(chosen, swapped, strict=True):
            for side, recipe in enumerate(("order", "base") if swap else ("base", "order")):
                name = f"{recipe}_{seed}"
                sides[side][name] = (base if recipe == "base" else order)[name]
        verdicts = compared(*(side_of(name, each) for name, each in zip("AB", sides, strict=True)))
        words.update((name, each.word) for name, each in verdicts.items())
        clean += all(each.word == "inconclusive" for each in verdicts.values())
    print(f"\nAnother order of the data: inconclusive, of {RESAMPLINGS} resamplings of {FIVE} pairs\n")
    print("| measure | inconclusive |\n| --- | ---: |")
    for name in dict.fromkeys(name for name, _ in words):
        print(f"| {name} | {words[name, 'inconclusive'] / RESAMPLINGS:.1%} |")
    print(f"| all at once | {clean / RESAMPLINGS:.1%} |")


def print_slow(base: Documents, slow: Documents) -> None:
    """The verdicts on a tenth of the learning rate, five trainings a side."""
    a, b = side_of("base", first(base)), side_of("slow", first(slow))
    print(f"\nA tenth of the learning rate, {FIVE} trainings a side\n")
    print("| measure | base | a tenth | difference | interval | it is |")
    print("| --- | ---: | ---: | ---: | --- | --- |")
    for name, each in compared(a, b).items():
        values = " | ".join(f"{side.measures[name].value:.4g}" for side in (a, b))
        bounds = "" if each.bounds is None else f"[{each.bounds[0]:.3g}, {each.bounds[1]:.3g}]"
        print(f"| {name} | {values} | {each.difference:+.3g} | {bounds} | {each.word} |")


def print_split(base: Documents) -> None:
    """The deviation between trainings and that of sampling within them, for every measure."""
    side: Side = side_of("base", first(base))
    print(f"\nStandard deviations of {FIVE} trainings with {seeds_of(side)} sampling seeds each\n")
    print("| measure | mean | between trainings | of sampling | trainings' share of the variance |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, each in side.measures.items():
        between, sampling = variance_split(each.per_seed)
        share = between / (between + sampling) if between + sampling else 0.0
        print(f"| {name} | {each.value:.4g} | {between**0.5:.3g} | {sampling**0.5:.3g} | {share:.0%} |")


def first(documents: Documents) -> dict[str, Any]:
    """The first five."""
    return dict([*documents.items()][:FIVE])


def seeds_of(side: Side) -> int:
    """Sampling seeds of its measures."""
    return len(next(iter(side.measures.values())).per_seed[0])


if __name__ == "__main__":
    main()
