"""A rehearsal of benchmarks/slopes.py: each cost is measured and drawn."""

import json

import pytest

from benchmarks.slopes import REHEARSED, exponent, measured


def test_the_exponent_of_a_power_is_its_own():
    assert exponent([(x, 3.0 * x**1.5) for x in (1, 2, 8)]) == pytest.approx(1.5)


def test_a_rehearsal_measures_and_draws_what_grows(tmp_path):
    slopes = {name: REHEARSED[name] for name in ("step_batch", "resume", "start")}
    measured(slopes, tmp_path)
    found = json.loads((tmp_path / "slopes.json").read_text())["slopes"]
    assert {name: [x for x, _ in own["points"]] for name, own in found.items()} == {
        name: list(slope.values) for name, slope in slopes.items()
    }
    assert all(seconds > 0 for own in found.values() for _, seconds in own["points"])
    assert {path.stem for path in tmp_path.glob("*.png")} == set(slopes)
