"""How to add a metric: `own/brightness.py` and `own/conf/metric/brightness.yaml`, and no other file."""

from pathlib import Path

import pytest
from PIL import Image

from ldm import config
from ldm.evaluation.results import read_results

CONF = Path(__file__).parent / "own" / "conf"


@pytest.fixture
def evaluate(command, tmp_path, monkeypatch):
    """`evaluate(out, greys, few=..., status=...)`: pictures of these greys against four of grey 100."""
    monkeypatch.setattr(config, "TARGETS", (*config.TARGETS, "tests.metrics.own."))

    def folder(name, greys):
        (tmp_path / name).mkdir()
        for number, grey in enumerate(greys):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / name / f"{number}.png")
        return tmp_path / name

    real = folder("real", [100] * 4)

    def run(out, greys, few="", status=0):
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
        return command("ldm.evaluate", *arguments, status=status)

    return run


def written(folder):
    """Results and report of an evaluation."""
    return read_results(folder / "results.json"), (folder / "report.md").read_text()


def test_it_is_measured_and_the_report_says_how_to_read_it(evaluate, tmp_path):
    assert "brightness" in evaluate("out", [10, 20, 30, 60]).out
    document, report = written(tmp_path / "out")
    (row,) = document["rows"]
    assert (row["metric"], row["value"], row["real"], row["few"]) == ("brightness", 30, 100, False)
    assert document["protocol"]["measures"] == ["brightness: Brightness"]
    assert (
        "- `brightness`: mean of all pixels, from 0 to 255; near the real pictures' own is better." in report
    )


def test_fewer_pictures_than_it_wants_are_refused_or_labelled(evaluate, tmp_path):
    sentence = evaluate("refused", [10, 20], status=1).sentence
    assert "has 2 pictures for 'brightness', which wants 4" in sentence
    assert not (tmp_path / "refused").exists()
    evaluate("labelled", [10, 20], few="brightness")
    document, report = written(tmp_path / "labelled")
    assert document["rows"][0]["few"]
    assert "brightness (few pictures)" in report
