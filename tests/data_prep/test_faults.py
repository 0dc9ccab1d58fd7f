"""Every kind of damage has its one answer: the list that benchmarks/injected_faults.py goes through."""

import pytest

from benchmarks.injected_faults import FAULTS, run

BY_BENCHMARK = {  # too slow for here
    "PNG with 100 MB of text in 100 kB",
    "command killed",
    "second command for the same folder",
    "killed, then finished shard lost",
    "killed, then note of a shard cut",
    "killed, then note of another plan",
}
SHARE = [fault for fault in FAULTS if fault.name not in BY_BENCHMARK]
FEW = 4  # trials of what can vary; the benchmark takes 100


def test_there_are_kinds_of_every_area():
    assert len(FAULTS) >= 100
    assert len({(fault.area, fault.name) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("fault", SHARE, ids=lambda fault: f"{fault.area}: {fault.name}")
def test_damage_has_its_answer_and_no_pair_is_wrong(fault):
    verdict = run(fault, FEW)
    assert (verdict.answer, verdict.wrong_pairs) == (fault.answer, 0), verdict.says


def test_the_benchmark_prints_a_table_and_the_totals(command):
    lines = command("benchmarks.injected_faults", "--area", "splits").out.splitlines()
    assert "| splits | picture in two lists | 1 | 0 | refused |" in "\n".join(lines)
    assert {"crashes: 0", "hangs: 0", "silent wrong pairs: 0"} <= set(lines)
