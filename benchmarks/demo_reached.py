"""Whether `make demo` has reached what it promises, from what it has left.

    make demo && python -m benchmarks.demo_reached [--runs runs]

For captions of training the right picture, of all emoji, must be the nearest for a quarter and among the
five nearest for half; chance is 0.06 and 0.3 %. From the start of the first training to the report the demo
must take at most 15 minutes on two idle cores. Fails if either is not so, or if a training was resumed, for
its breaks count, too.
"""

import argparse
import sys
from datetime import datetime
from pathlib import Path

from ldm.evaluation.results import FILE_NAME, read_results, values
from ldm.io.reading import read_json

BOUNDS = {"train/r1_efficientnet_lite0": 0.25, "train/r5_efficientnet_lite0": 0.50}
MINUTES = 15
STAGES = ("demo_clip", "demo_vae", "demo")


def minutes(runs: Path) -> float:
    """From the start of CLIP's newest training to the report; infinite where a training was resumed."""
    newest = [max(runs.glob(f"{stage}/*/run.json")) for stage in STAGES]  # folders are named by their time
    records = [read_json(path) for path in newest]
    if any("resumed" in record for record in records):
        return float("inf")
    started = datetime.fromisoformat(records[0]["started"]).timestamp()
    return ((runs / "demo" / "evaluation" / "report.md").stat().st_mtime - started) / 60


def main() -> None:
    """Prints each number beside its bound; exit status 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    runs = parser.parse_args().runs
    found = values(read_results(runs / "demo" / "evaluation" / FILE_NAME))
    took = minutes(runs)
    for name, bound in BOUNDS.items():
        print(f"{'ok  ' if found[name] >= bound else 'FAIL'} {name} {found[name]:.1%}, at least {bound:.0%}")
    print(f"{'ok  ' if took <= MINUTES else 'FAIL'} {took:.1f} minutes, at most {MINUTES}")
    sys.exit(took > MINUTES or any(found[name] < bound for name, bound in BOUNDS.items()))


if __name__ == "__main__":
    main()
