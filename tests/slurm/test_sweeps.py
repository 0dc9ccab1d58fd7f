"""What a sweep came to: its table, its figure, and Optuna's choice of the next point."""

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from experiments.sweep_figure import axis_of
from experiments.sweeps import Options, Outcome, main, seeds_section
from hydra_plugins.ldm_sweeps.points import Point, label_of, numbers
from hydra_plugins.ldm_sweeps.study import distribution, num_complete, open_study, parsed


@pytest.fixture
def trained(tmp_path):
    """`trained(value, loss, ...)`: a point that trained at a learning rate, as its files tell it."""

    def make(value: str, loss: float | None, *, finished: bool = True) -> Point:
        swept = {"optimizer.lr": value}
        folder = tmp_path / "rates" / label_of(swept)
        command = ["ldm.train", f"optimizer.lr={value}", "steps=3", "data.root=/here", f"runs={folder}"]
        point = Point(folder=folder, swept=swept, command=command)
        point.save()
        run = point.folder / "rates" / "20260101-000000-00000000"
        (run / "bundle").mkdir(parents=True)
        (run / "run.json").write_text(json.dumps({"commit": "0123456789abcdef"}))
        records = [{"step": 1, "val/loss": 9.0}, {"step": 2, "train/loss": 1.0}]
        records += [] if loss is None else [{"step": 3, "val/loss": loss}]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        if finished:
            (run / "bundle" / "config.yaml").touch()
        return point

    return make


@pytest.fixture
def measured(tmp_path):
    """`measured(scale, ruler)`: a point that evaluated a bundle, as its files tell it."""

    def make(scale: str, ruler: str) -> Point:
        swept = {"scale": scale}
        point = Point(folder=tmp_path / "guidance" / label_of(swept), swept=swept, command=["ldm.evaluate"])
        point.save()
        point.results.parent.mkdir()
        document = {
            "format": 1,
            "protocol": {"ruler": ruler},
            "provenance": {"commit": None},
            "rows": [{"set": "train", "metric": "fd", "value": 3.0}],
        }
        point.results.write_text(json.dumps(document))
        return point

    return make


def test_a_training_counts_with_its_last_validation(trained):
    assert numbers(trained("1e-3", 0.25)) == {"val/loss": 0.25}


def test_a_table_has_its_points_by_size_and_a_figure(trained, tmp_path):
    for value, loss in (("1e-2", 0.5), ("3e-4", 0.75), ("1e-3", 0.25)):
        trained(value, loss)
    trained("2e-3", None, finished=False)
    main(Options(folder=str(tmp_path / "rates"), out=str(tmp_path / "out")))
    with (tmp_path / "out" / "table.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert rows == [
        ["optimizer.lr", "val/loss", "state"],
        ["3e-4", "0.75", "finished"],
        ["1e-3", "0.25", "finished"],
        ["2e-3", "9", "not finished"],
        ["1e-2", "0.5", "finished"],
    ]
    words = (tmp_path / "out" / "README.md").read_text()
    assert "| 1e-3 | 0.25 | finished |" in words
    assert "4 points of `python -m ldm.train steps=3`, at commit 0123456789" in words
    with Image.open(tmp_path / "out" / "figure.png") as figure:
        assert len(figure.convert("RGB").getcolors(100_000)) > 2


def test_the_table_of_a_sweep_of_seeds_ends_with_their_spread():
    """Losses of 1, 2 and 3 at one rate, and of one seed at another."""
    points = [("1e-3", "0", 1.0), ("1e-3", "1", 2.0), ("1e-3", "2", 3.0), ("2e-3", "0", 5.0)]
    outcomes = [
        Outcome(
            swept={"optimizer.lr": rate, "seed": seed}, state="finished", numbers={"val/loss": loss},
            commit="c", ruler="",
        )
        for rate, seed, loss in points
    ]  # fmt: skip
    title, table = seeds_section(outcomes, ["val/loss"])
    assert title == "Mean ± standard deviation between training seeds:"
    assert table.splitlines()[2:] == ["| optimizer.lr=1e-3 | 2 ± 1 (3 training seeds) |"]
    assert seeds_section(outcomes[-1:], ["val/loss"]) == []


def test_evaluations_of_one_ruler_are_compared_and_of_two_are_refused(measured, tmp_path):
    measured("1", "same")
    measured("2", "same")
    options = Options(folder=str(tmp_path / "guidance"), out=str(tmp_path / "out"))
    main(options)
    assert "| 2 | 3 | finished |" in (tmp_path / "out" / "README.md").read_text()
    measured("3", "other")
    with pytest.raises(ValueError, match="measured under 2 protocols"):
        main(options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "folder= is empty"),
        ({"folder": "/nowhere"}, "there is no sweep at /nowhere"),
        ({"folder": "rates", "metrics": "val/psnr"}, "no point has a val/psnr; there are: val/loss"),
    ],
)
def test_tables_that_can_not_be_are_refused(trained, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    trained("1e-3", 0.25)
    with pytest.raises(ValueError, match=sentence):
        main(Options(**options))


def test_numbers_go_along_the_axis_and_words_name_the_lines():
    points = [({"+sampler": name, "steps": steps}, {}) for name in ("a", "b", "c") for steps in ("5", "9")]
    assert axis_of(points) == "steps"
    assert axis_of([({"process": "flow"}, {})]) == "process"


def test_a_study_finds_the_bottom_of_a_bowl_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("optuna")
    space = {"x": distribution(parsed(["x=interval(-4.0, 4.0)"])[0])}

    def run(trials: int) -> float:
        study = open_study(tmp_path, name="bowl", direction="minimize", seed=0, batch=1)
        while num_complete(study) < trials:
            trial = study.ask(space)
            study.tell(trial, (trial.params["x"] - 1) ** 2)
        return study.best_value

    first = run(5)
    assert run(40) <= first
    assert run(40) < 0.04  # |x - 1| < 0.2, one part in twenty of the interval
    assert sum(1 for _ in Path(tmp_path).glob("study.jsonl")) == 1


def test_a_trial_that_was_left_open_is_asked_for_again(tmp_path):
    pytest.importorskip("optuna")
    space = {"x": distribution(parsed(["x=interval(0.0, 1.0)"])[0])}
    left = open_study(tmp_path, name="bowl", direction="minimize", seed=0, batch=1).ask(space)
    again = open_study(tmp_path, name="bowl", direction="minimize", seed=0, batch=1).ask(space)
    assert again.params == left.params


@pytest.mark.parametrize(
    ("text", "kind", "log"),
    [
        ("choice(a, b)", "CategoricalDistribution", None),
        ("1,2,3", "CategoricalDistribution", None),
        ("range(1, 5)", "CategoricalDistribution", None),
        ("interval(1, 5)", "FloatDistribution", False),
        ("int(interval(1, 5))", "IntDistribution", False),
        ("tag(log, interval(1e-4, 1e-2))", "FloatDistribution", True),
    ],
)
def test_hydras_grammar_has_its_distributions(text, kind, log):
    pytest.importorskip("optuna")
    found = distribution(parsed([f"key={text}"])[0])
    assert type(found).__name__ == kind
    assert getattr(found, "log", None) == log
