"""`python -m ldm.evaluate protocol=pictures_measures`: two folders of pictures, every measure of 2026."""

import shutil
import sys

import pytest

from benchmarks.drawn_pictures import draw
from ldm.evaluate import main
from ldm.evaluation.results import read_results

NETWORK = "efficientnet_lite0"
ROWS = {
    *(f"{name}_{NETWORK}" for name in ("fd", "fd_ratio", "mind", "clipped_density", "clipped_coverage")),
    *("copied_pixels", "copied_mirrored_pixels", "copy_ratio_pixels"),
}


@pytest.fixture
def command(tmp_path, monkeypatch):
    """`command(made, real, *arguments)`: the results by metric."""

    def run(made, real, *arguments):
        defaults = [
            *("protocol=pictures_measures", f"pictures={made}", f"reference={real}"),
            *(f"protocol.extractors.{NETWORK}.size=32", "metric.mind.projections=64"),
            *(f"out={tmp_path / 'out'}", f"cache={tmp_path / 'features'}"),
        ]
        monkeypatch.setattr(sys, "argv", ["ldm.evaluate", *defaults, *arguments])
        main()
        return {row["metric"]: row for row in read_results(tmp_path / "out" / "results.json")["rows"]}

    return run


def test_two_folders_are_measured_and_a_copy_among_them_is_found(command, tmp_path):
    real = draw(tmp_path / "real", count=14, side=32, grain=5, seed=0)
    made = draw(tmp_path / "made", count=8, side=32, grain=5, seed=1)
    shutil.copy(sorted(real.iterdir())[3], sorted(made.iterdir())[2])
    rows = command(made, real)
    assert rows.keys() == ROWS
    assert rows["copied_pixels"]["value"] == 1 / 8
    assert rows["copied_mirrored_pixels"]["value"] == 0
    assert rows[f"mind_{NETWORK}"]["floor"] > 0
    assert 0 <= rows[f"clipped_density_{NETWORK}"]["value"] <= 1
    assert rows[f"fd_ratio_{NETWORK}"]["few"]


def test_too_few_pictures_are_refused_in_one_sentence(command, tmp_path, capsys):
    real = draw(tmp_path / "real", count=5, side=32, grain=5, seed=0)
    made = draw(tmp_path / "made", count=8, side=32, grain=5, seed=1)
    with pytest.raises(SystemExit) as ended:
        command(made, real)
    assert ended.value.code == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "needs at least 5 generated ones, got 2" in error  # the floor's, of half of the real pictures
    assert not (tmp_path / "out").exists()
