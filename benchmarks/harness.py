"""Faults of any kind, one after the other: what came of each, as a row of a table."""

import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

CRASHED, HUNG = "crashed", "hung"
LENGTH = 160  # characters of a sentence in the table


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of a fault; families of faults add what they measure.

    Attributes:
        tries: how often it was brought about.
        failures: what was wrong, one sentence each.
        answer: what came of it in a word, where there are several good answers.
        says: what else is worth telling.
    """

    tries: int = 1
    failures: Sequence[str] = ()
    answer: str = ""
    says: str = ""

    @property
    def passed(self) -> bool:
        """Whether the fault was met as it should be."""
        return self.tries > 0 and not self.failures


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One kind of fault.

    Attributes:
        area: what it belongs to.
        name: what is done.
        run: does it so many times, in an empty folder.
        tries: how often, in the long form and in the short one.
        answer: what must come of it, where a verdict has an answer.
    """

    name: str
    run: Callable[[Path, int], Verdict]
    area: str = ""
    tries: tuple[int, int] = (1, 1)
    answer: str = ""


def bring_about(fault: Fault, tries: int = 1, *, limit: int = 0) -> Verdict:
    """The verdict on a fault, in a folder of its own; what the code under it prints is left out.

    Args:
        limit: seconds after which it counts as hung; 0 sets no limit.
    """
    if limit:
        signal.signal(signal.SIGALRM, _ring)
        signal.alarm(limit)
    try:
        with tempfile.TemporaryDirectory(prefix="ldm-") as folder, redirect_stdout(StringIO()):
            return fault.run(Path(folder), tries)
    except Exception as error:  # what no part of ours answered is a finding, whatever it is
        traceback.print_exc()
        answer = HUNG if isinstance(error, TimeoutError) else CRASHED
        return Verdict(answer=answer, failures=[f"{answer}: {error!r}"], says=repr(error))
    finally:
        signal.alarm(0)


def table(
    faults: Iterable[Fault], columns: Mapping[str, str], run: Callable[[Fault], Verdict] = bring_about
) -> list[tuple[Fault, Verdict]]:
    """Prints a row for each fault, and its first failures to stderr; returns what came of all.

    Args:
        columns: what is printed besides, by its title: an attribute of the verdicts.
    """
    titles = ["area", "fault", "tries", "failures", *columns, "says"]
    print(f"| {' | '.join(titles)} |\n|{' --- |' * len(titles)}", flush=True)
    found = []
    for fault in faults:
        verdict = run(fault)
        found.append((fault, verdict))
        own = [getattr(verdict, name, "") for name in columns.values()]
        says = " ".join(verdict.says.split()).replace("|", "\\|")
        says = says if len(says) <= LENGTH else f"{says[: LENGTH - 3]}..."
        cells = [fault.area, fault.name, verdict.tries, len(verdict.failures), *own, says]
        print(
            f"| {' | '.join(f'{each:.1f}' if isinstance(each, float) else str(each) for each in cells)} |",
            flush=True,
        )
        for sentence in verdict.failures[:5]:
            print(f"  {sentence}", file=sys.stderr)
    return found


def _ring(_signal: int, _frame: object) -> None:
    raise TimeoutError("nothing happened within the limit")
