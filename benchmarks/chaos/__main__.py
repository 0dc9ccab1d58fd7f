"""Kills, crashes and full disks, and a table of what they did: `python -m benchmarks.chaos`.

    python -m benchmarks.chaos                            everything: half an hour on one core
    python -m benchmarks.chaos --area saves --area disk   these alone
    python -m benchmarks.chaos --kind SIGTERM             those that have this in their name
    python -m benchmarks.chaos --short                    a few tries of each kind
    python -m benchmarks.chaos --out chaos.json           where the results go

The exit status is 1 if a kind failed: a checkpoint that is not whole was taken, one that was saved is gone,
more than one save interval was lost, or a resumed training differs from the one that was never stopped.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos import cost, disk, kills, lines, ranks, resumes, trainings
from benchmarks.harness import Fault, Verdict, bring_about, table
from ldm.checkpoints.provenance import command, environment, git_state

FAULTS = [fault for area in (kills, lines, disk, trainings, resumes, ranks, cost) for fault in area.FAULTS]


def main() -> None:
    """Runs every kind, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--area", action="append", help="saves, disk, trainings, resumes or cost")
    parser.add_argument("--kind", default="", help="words of a kind's name")
    parser.add_argument("--short", action="store_true", help="a few tries of each kind")
    parser.add_argument("--tries", type=int, default=10**6, help="at most so many of each kind")
    parser.add_argument("--out", type=Path, help="a json file")
    options = parser.parse_args()
    seconds: list[float] = []

    def run(fault: Fault) -> Verdict:
        began = time.perf_counter()
        verdict = bring_about(fault, min(fault.tries[options.short], options.tries))
        seconds.append(round(time.perf_counter() - began, 1))
        return verdict

    areas = options.area or {fault.area for fault in FAULTS}
    chosen = [fault for fault in FAULTS if fault.area in areas and options.kind in fault.name]
    found = table(chosen, {"steps lost at most": "steps"}, run)
    if options.out:
        results = [
            {"area": fault.area, "name": fault.name, **asdict(verdict), "seconds": own}
            for (fault, verdict), own in zip(found, seconds, strict=True)
        ]
        provenance = git_state() | environment() | {"command": command()}
        options.out.write_text(json.dumps({"results": results, "provenance": provenance}, indent=2) + "\n")
    sys.exit(not all(verdict.passed for _, verdict in found))


if __name__ == "__main__":
    main()
