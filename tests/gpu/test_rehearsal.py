"""`python -m benchmarks.gpu` rehearses all that it would do on a GPU."""

import json

import pytest

from benchmarks.gpu.__main__ import FAILED, PARTS, run, write_results
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.rows import CONFIRMED, FAILS, HOLDS, REFUTED, Row, bounded, foretold

MACHINE = Machine.here(rehearsal=True)


@pytest.mark.usefixtures("unchecked_shapes")
def test_every_part_runs_and_what_it_is_held_to_holds(tmp_path):
    parts = {name: part for name, part in PARTS.items() if name != "compiled"}  # seconds of compiling
    rows = run(MACHINE, parts)
    write_results(MACHINE, rows, tmp_path)
    assert [row for row in rows if row.verdict in (FAILED, FAILS)] == []
    assert {row.part for row in rows if row.what != "took"} == parts.keys()
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rehearsal"]
    assert len(written["rows"]) == len(rows)
    lines = (tmp_path / "gpu.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(rows) + 2


def test_a_part_that_fails_is_a_row_and_the_next_one_follows():
    def broken(machine):
        yield Row(what="one", value=1.0)
        raise RuntimeError("out of memory\nand more")

    def whole(machine):
        yield Row(what="two", value=2.0)

    rows = [row for row in run(MACHINE, {"a": (broken, 5), "b": (whole, 5)}) if row.what != "took"]
    assert [(row.part, row.what, row.verdict) for row in rows] == [
        ("a", "one", ""),
        ("a", "RuntimeError: out of memory", FAILED),
        ("b", "two", ""),
    ]


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (bounded("", 1.0, 1.0), HOLDS),
        (bounded("", float("nan"), 1.0), FAILS),
        (foretold("", 1.1, 1.0, "s", source="model"), CONFIRMED),
        (foretold("", 2.0, 1.0, "s", source="model"), REFUTED),
        (foretold("", None, 1.0, "s", source="model"), ""),
    ],
)
def test_a_verdict_says_whether_a_number_holds(row, verdict):
    assert row.verdict == verdict
