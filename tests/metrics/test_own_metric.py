"""How to add a metric: `own/brightness.py` and `own/conf/metric/brightness.yaml`, and no other file."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm import config
from ldm.construct import CONFIG_DIR
from ldm.evaluate import main
from ldm.evaluation.results import read_results

CONF = Path(__file__).parent / "own" / "conf"


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """`evaluate(out, greys, *arguments)`: measures pictures of these greys against four of grey 100."""
    monkeypatch.setenv(CONFIG_DIR, "")  # `--config-dir` sets it: undone after the test
    monkeypatch.setattr(config, "TARGETS", (*config.TARGETS, "tests.metrics.own."))

    def folder(name, greys):
        (tmp_path / name).mkdir()
        for number, grey in enumerate(greys):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / name / f"{number}.png")
        return tmp_path / name

    real = folder("real", [100] * 4)

    def run(out, greys, few=""):
        arguments = [
            *("--config-dir", str(CONF), "protocol=pictures", "protocol.size=8"),
            f"pictures={folder(f'{out}_made', greys)}",
            f"reference={real}",
            f"out={tmp_path / out}",
            f"cache={tmp_path / 'features'}",
            f"protocol.sets=[{{name: a, split: null, captions: null, metrics: [brightness], few: [{few}]}}]",
            "~protocol.extractors.efficientnet_lite0",
            "+protocol.extractors.pixels={_target_: ldm.metrics.features.Pixels, size: 8}",
        ]
        monkeypatch.setattr(sys, "argv", ["ldm.evaluate", *arguments])
        main()
        return read_results(tmp_path / out / "results.json"), (tmp_path / out / "report.md").read_text()

    return run


def test_it_is_measured_and_the_report_says_how_to_read_it(evaluate, capsys):
    document, report = evaluate("out", [10, 20, 30, 60])
    (row,) = document["rows"]
    assert (row["metric"], row["value"], row["real"], row["few"]) == ("brightness", 30, 100, False)
    assert document["protocol"]["measures"] == ["brightness: Brightness"]
    assert (
        "- `brightness`: mean of all pixels, from 0 to 255; near the real pictures' own is better." in report
    )
    assert "brightness" in capsys.readouterr().out


def test_fewer_pictures_than_it_wants_are_refused_or_labelled(evaluate, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        evaluate("refused", [10, 20])
    assert ended.value.code == 1
    assert "has 2 pictures for 'brightness', which wants 4" in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()
    document, report = evaluate("labelled", [10, 20], few="brightness")
    assert document["rows"][0]["few"]
    assert "brightness (few pictures)" in report
