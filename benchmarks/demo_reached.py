"""Whether `make demo` has reached what it promises, from the results that it has left.

    make demo && python -m benchmarks.demo_reached [--results runs/demo/evaluation/results.json]

For captions of training the right picture, of all emoji, must be the nearest for a tenth and among the five
nearest for a quarter; chance is 0.06 and 0.3 %. Fails here if it isn't.
"""

import argparse
import sys
from pathlib import Path

from ldm.evaluation.results import read_results, values

BOUNDS = {"train/r1_efficientnet_lite0": 0.10, "train/r5_efficientnet_lite0": 0.25}


def main() -> None:
    """Prints each share beside its bound; exit status 1 if one is below."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=Path("runs/demo/evaluation/results.json"))
    found = values(read_results(parser.parse_args().results))
    for name, bound in BOUNDS.items():
        print(f"{'ok  ' if found[name] >= bound else 'FAIL'} {name} {found[name]:.1%}, at least {bound:.0%}")
    sys.exit(any(found[name] < bound for name, bound in BOUNDS.items()))


if __name__ == "__main__":
    main()
