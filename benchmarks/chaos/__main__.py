"""Kills, crashes and full disks, and a table of what they did: `python -m benchmarks.chaos`.

    python -m benchmarks.chaos                            everything: half an hour on one core
    python -m benchmarks.chaos --area saves --area disk   these alone
    python -m benchmarks.chaos --kind SIGTERM             those that have this in their name
    python -m benchmarks.chaos --short                    a few tries of each kind
    python -m benchmarks.chaos --out chaos.json           where the results go

The exit status is 1 if a kind failed: a state that is not whole was taken, one that was saved is gone, more
than one save interval was lost, or a resumed training differs from the one that was never stopped.
"""

import argparse
import json
import sys
import tempfile
import time
import traceback
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.chaos import cost, disk, kills, lines, ranks, resumes, trainings
from benchmarks.chaos.verdict import Kind, Verdict
from ldm.checkpoints.provenance import command, environment, git_state

AREAS = (kills, lines, disk, trainings, resumes, ranks, cost)
KINDS: list[Kind] = [kind for area in AREAS for kind in area.KINDS]
COLUMNS = """
| area | kind | tries | failures | steps lost at most | says |
| --- | --- | ---: | ---: | ---: | --- |
"""


def main() -> None:
    """Runs every kind, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--area", action="append", help="saves, disk, trainings, resumes or cost")
    parser.add_argument("--kind", default="", help="words of a kind's name")
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--tries", type=int, help="at most so many of each kind")
    parser.add_argument("--out", type=Path, help="a json file")
    options = parser.parse_args()
    print(COLUMNS.strip())
    results, passed = [], True
    for kind in KINDS:
        if (options.area and kind.area not in options.area) or options.kind not in kind.name:
            continue
        began = time.perf_counter()
        verdict = run(kind, min(kind.tries[options.short], options.tries or 10**6))
        seconds = round(time.perf_counter() - began, 1)
        passed &= verdict.passed
        results.append({"area": kind.area, "name": kind.name} | asdict(verdict) | {"seconds": seconds})
        print(row(kind, verdict), flush=True)
        for sentence in verdict.failures[:5]:
            print(f"  {sentence}", file=sys.stderr)
    if options.out:
        options.out.write_text(json.dumps(document(results), indent=2) + "\n")
    sys.exit(not passed)


def run(kind: Kind, tries: int) -> Verdict:
    """What came of one kind, in a folder of its own; what the code under it prints is left out."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        try:
            return kind.run(Path(folder), tries)
        except Exception as error:  # what the harness did not expect is a failure, too
            traceback.print_exc()
            return Verdict(tries=1, failures=[repr(error)], lost=0, interval=0)


def row(kind: Kind, verdict: Verdict) -> str:
    """A line of the table."""
    failures = len(verdict.failures)
    lost = f"{verdict.lost} of {verdict.interval}"
    return f"| {kind.area} | {kind.name} | {verdict.tries} | {failures} | {lost} | {verdict.says} |"


def document(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The results with what they depend on."""
    return {"results": results, "provenance": git_state() | environment() | {"command": command()}}


if __name__ == "__main__":
    main()
