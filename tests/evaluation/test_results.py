import json
import math
import os

import pytest
import torch

from ldm.evaluation.figures import save_figures
from ldm.evaluation.pictures import Subject
from ldm.evaluation.report import report
from ldm.evaluation.results import Row, read_results, results, values, write_results


@pytest.fixture
def document(evaluator, paints):
    sets = [evaluator.measure(paints, each) for each in evaluator.protocol.sets]
    found = results(
        protocol=evaluator.protocol,
        subject=Subject(
            kind="bundle",
            generate=paints,
            path="runs/x/bundle",
            sha256="b" * 64,
            size=16,
            generation={},
            origin={"experiment": "tiny"},
        ),
        sets=sets,
        autoencoder=[Row(set="autoencoder", metric="psnr", value=27.5, images=6)],
        config_hash="c" * 64,
        seconds=1.5,
        device=torch.device("cpu"),
    )
    return found, sets


def test_results_carry_numbers_and_provenance(document, tmp_path):
    write_results(tmp_path / "results.json", document[0])
    found = read_results(tmp_path / "results.json")
    assert values(found)["train/r1_colours"] == 1
    assert values(found)["autoencoder/psnr"] == 27.5
    assert found["sets"]["diversity"]["seeds"] == [100, 105]
    assert found["protocol"]["sets"][0]["captions"] == 8
    assert {row["protocol"] for row in found["rows"]} == {found["protocol"]["hash"]}
    assert found == json.loads(json.dumps(document[0]))
    origin = found["provenance"]
    for name in ("commit", "dirty", "config_hash", "command", "torch", "python", "threads", "seconds"):
        assert name in origin
    assert origin["peak_memory_mb"]["host"] > 50


def test_results_that_are_not_finite_are_not_written(document, tmp_path):
    document[0]["rows"][0]["value"] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_results(tmp_path / "results.json", document[0])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_earlier_results(document, tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, document[0])
    before = path.read_bytes()

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_results(path, {"format": 1})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "\x00\xff"])
def test_a_file_that_is_no_results_is_refused(text, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="evaluate again"):
        read_results(path)
    with pytest.raises(ValueError, match="there are no results"):
        read_results(tmp_path / "missing.json")


def test_report_shows_numbers_references_figures_and_provenance(document, tmp_path):
    found, sets = document
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n{"st'
    )
    text = report(found, figures=save_figures(tmp_path, sets, curves=tmp_path / "metrics.jsonl"))
    for piece in (
        "| train | r1_colours | 1 |",
        "heun(steps=4)",
        found["protocol"]["hash"][:12],
        "clip_score",
    ):
        assert piece in text
    for name in ("train.png", "heldout.png", "diversity.png", "curves.png"):
        assert f"({name})" in text
        assert (tmp_path / name).stat().st_size < 400_000


def test_a_list_of_numbers_is_one_line_and_texts_are_kept(tmp_path):
    shown = {"format": 1, "per_seed": [[1.5, 2.0]], "command": "sweep.scales=[ 1, 2 ] out=.../a"}
    document = shown | {"command": "sweep.scales=[ 1, 2 ] out=/home/me/a"}
    write_results(tmp_path / "results.json", document)
    assert "[1.5, 2.0]" in (tmp_path / "results.json").read_text()
    assert read_results(tmp_path / "results.json") == shown
