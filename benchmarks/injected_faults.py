"""Damages data in every way that we know and prints what came of it: `python -m benchmarks.injected_faults`.

    python -m benchmarks.injected_faults [--area pictures] [--trials 100]

Each kind runs through the real preparation, or the real reading, of a small set in which every pair proves
itself. The table says what came of each; the exit status is 1 if anything crashed, hung, gave a pair that is
wrong without a word, or another answer than it must.
"""

import argparse
import signal
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

from benchmarks.faults import captions, pictures, processes, sets, splits, tars
from benchmarks.faults.world import Fault, Verdict

FAULTS: list[Fault] = [
    fault for area in (pictures, captions, splits, tars, sets, processes) for fault in area.FAULTS
]
LIMIT = 300  # seconds for one kind; more is a hang
CRASHED, HUNG = "crashed", "hung"


def main() -> None:
    """Runs every kind and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--area", help="only this one: pictures, captions, splits, tars, sets, processes")
    parser.add_argument("--trials", type=int, default=100, help="of each kind that can vary (default: 100)")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _ring)
    totals: Counter[str] = Counter()
    print("| area | fault | trials | what came of it | says |\n| --- | --- | ---: | --- | --- |")
    for fault in FAULTS:
        if options.area not in (None, fault.area):
            continue
        verdict = run(fault, options.trials)
        totals["kinds"] += 1
        totals["injected"] += verdict.trials
        totals["crashes"] += verdict.answer == CRASHED
        totals["hangs"] += verdict.answer == HUNG
        totals["silent wrong pairs"] += verdict.wrong_pairs
        totals["other answers than expected"] += verdict.answer != fault.answer
        print(row(fault, verdict), flush=True)
    print()
    for name in (
        "kinds",
        "injected",
        "crashes",
        "hangs",
        "silent wrong pairs",
        "other answers than expected",
    ):
        print(f"{name}: {totals[name]}")
    bad = ("crashes", "hangs", "silent wrong pairs", "other answers than expected")
    sys.exit(1 if sum(totals[name] for name in bad) else 0)


def run(fault: Fault, trials: int) -> Verdict:
    """What came of one kind, crashes and hangs included."""
    signal.alarm(LIMIT)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return fault.run(Path(folder), trials)
    except TimeoutError as error:
        return Verdict(HUNG, 1, 0, str(error))
    except Exception as error:  # what no part of ours answered is a crash, of whatever kind
        traceback.print_exc()
        return Verdict(CRASHED, 1, 0, repr(error))
    finally:
        signal.alarm(0)


def row(fault: Fault, verdict: Verdict) -> str:
    """A line of the table."""
    answer = verdict.answer if verdict.answer == fault.answer else f"**{verdict.answer}**, not {fault.answer}"
    says = " ".join(verdict.says.split()).replace("|", "\\|")
    says = says if len(says) <= 160 else f"{says[:157]}..."
    return f"| {fault.area} | {fault.name} | {verdict.trials} | {answer} | {says} |"


def _ring(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"nothing after {LIMIT} s")


if __name__ == "__main__":
    main()
