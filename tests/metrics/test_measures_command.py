"""`python -m ldm.evaluate protocol=pictures_measures`: two folders of pictures, every measure of 2026."""

import shutil

import pytest

from benchmarks.drawn_pictures import draw
from ldm.evaluation.results import read_results

NETWORK = "efficientnet_lite0"
ROWS = {
    *(f"{name}_{NETWORK}" for name in ("fd", "fd_ratio", "mind", "clipped_density", "clipped_coverage")),
    *("copied_pixels", "copied_mirrored_pixels", "copy_ratio_pixels"),
}


@pytest.fixture
def measure(command, tmp_path):
    """`measure(made, real, status=0)`: how the command ended."""

    def run(made, real, **options):
        defaults = [
            *("protocol=pictures_measures", f"pictures={made}", f"reference={real}"),
            *(f"protocol.extractors.{NETWORK}.size=32", "metric.mind.projections=64"),
            *(f"out={tmp_path / 'out'}", f"cache={tmp_path / 'features'}"),
        ]
        return command("ldm.evaluate", *defaults, **options)

    return run


def test_two_folders_are_measured_and_a_copy_among_them_is_found(measure, tmp_path):
    real = draw(tmp_path / "real", count=14, side=32, grain=5, seed=0)
    made = draw(tmp_path / "made", count=8, side=32, grain=5, seed=1)
    shutil.copy(sorted(real.iterdir())[3], sorted(made.iterdir())[2])
    measure(made, real)
    rows = {row["metric"]: row for row in read_results(tmp_path / "out" / "results.json")["rows"]}
    assert rows.keys() == ROWS
    assert rows["copied_pixels"]["value"] == 1 / 8
    assert rows["copied_mirrored_pixels"]["value"] == 0
    assert rows[f"mind_{NETWORK}"]["floor"] > 0
    assert 0 <= rows[f"clipped_density_{NETWORK}"]["value"] <= 1
    assert rows[f"fd_ratio_{NETWORK}"]["few"]


def test_too_few_pictures_are_refused_in_one_sentence(measure, tmp_path):
    real = draw(tmp_path / "real", count=5, side=32, grain=5, seed=0)
    made = draw(tmp_path / "made", count=8, side=32, grain=5, seed=1)
    sentence = measure(made, real, status=1).sentence
    assert "needs at least 5 generated ones, got 2" in sentence  # the floor's, of half of the real pictures
    assert not (tmp_path / "out").exists()
