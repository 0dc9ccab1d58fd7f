"""Damages data in every way that we know and prints what came of it: `python -m benchmarks.injected_faults`.

    python -m benchmarks.injected_faults [--area pictures] [--trials 100]

Each kind runs through the real preparation, or the real reading, of a small set in which every pair proves
itself. The table says what came of each; the exit status is 1 if anything crashed, hung, gave a pair that is
wrong without a word, or another answer than it must.
"""

import argparse
import sys
from dataclasses import replace

from benchmarks.faults import captions, pictures, processes, sets, splits, tars
from benchmarks.harness import CRASHED, HUNG, Fault, Verdict, bring_about, table

FAULTS = [fault for area in (pictures, captions, splits, tars, sets, processes) for fault in area.FAULTS]
LIMIT = 300  # seconds for one kind; more is a hang


def main() -> None:
    """Runs every kind and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--area", help="only this one: pictures, captions, splits, tars, sets, processes")
    parser.add_argument("--trials", type=int, default=100, help="of each kind that can vary (default: 100)")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.area in (None, fault.area)]
    found = table(chosen, {"what came of it": "answer"}, lambda fault: run(fault, options.trials))
    verdicts = [verdict for _, verdict in found]
    answers = [verdict.answer for verdict in verdicts]
    bad = {
        "crashes": answers.count(CRASHED),
        "hangs": answers.count(HUNG),
        "silent wrong pairs": sum(getattr(verdict, "wrong_pairs", 0) for verdict in verdicts),
        "other answers than expected": sum(verdict.answer != fault.answer for fault, verdict in found),
    }
    injected = sum(verdict.tries for verdict in verdicts)
    print(f"\nkinds: {len(found)}\ninjected: {injected}")
    for name, count in bad.items():
        print(f"{name}: {count}")
    sys.exit(any(bad.values()))


def run(fault: Fault, trials: int) -> Verdict:
    """What came of one kind, crashes and hangs included."""
    verdict = bring_about(fault, trials, limit=LIMIT)
    wrong, other = getattr(verdict, "wrong_pairs", 0), verdict.answer != fault.answer
    failures = [f"{verdict.answer}, not {fault.answer}"] * other + [f"{wrong} wrong pairs"] * bool(wrong)
    return replace(verdict, failures=failures)


if __name__ == "__main__":
    main()
