"""Folders in, verdicts out: `python -m experiments.compare` on results that are written here."""

import csv
import io
import json
import time

import numpy as np
import pytest
import yaml

from experiments.compare import HEADER, ONE_TRAINING, Options, main
from experiments.report import FOLDER

EMOJI = FOLDER / "emoji"
PROTOCOL = {"name": "tiny", "sampler": "ddim(steps=5)", "sets": [{"name": "train", "captions": 40}]}


@pytest.fixture
def evaluation(tmp_path):
    """`evaluation(name, shift)`: writes results of three sampling seeds, a shift from those of others."""

    def make(name, shift=0.0, *, seed=0, noise=0.1, captions=40, rows=None, **protocol):
        rng = np.random.default_rng(abs(hash(name)) % 2**32)
        hits = 0.5 + shift + noise * rng.normal(size=(1, 3, captions))
        distances = (5 - 10 * shift + noise * rng.normal(size=(1, 3))).tolist()
        found = protocol.pop("protocol", PROTOCOL) | protocol
        document = {
            "format": 1,
            "protocol": {"hash": "a" * 64, "ruler": "c" * 64} | found,
            "bundle": {"sha256": name, "path": name, "origin": {"seed": seed}},
            "readings": {},
            "rows": rows
            or [
                row("r1_x", hits.mean(axis=2).tolist(), hits.round(6).tolist(), True),
                row("fd_x", distances, [], False),
                row("vendi_x", distances, [], None),
            ],
        }
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(document))
        return str(tmp_path / name)

    return make


def row(metric, per_seed, per_caption, better):
    return {
        "set": "train", "metric": metric, "value": float(np.mean(per_seed)), "per_seed": per_seed,
        "per_caption": per_caption, "higher_is_better": better,
    }  # fmt: skip


@pytest.fixture
def compare(capsys):
    """`compare(a, b)`: the lines of the table by measure, as csv has them."""

    def run(a, b, **options):
        main(Options(a=a, b=b, csv=True, **options))
        lines = csv.DictReader(io.StringIO(capsys.readouterr().out))
        return {line["measure"]: line for line in lines}

    return run


def test_one_training_a_side_answers_for_the_sampling_alone(evaluation, compare, capsys):
    a, b = evaluation("a"), evaluation("b", 0.3)
    found = compare(a, b)
    assert [each["B is"] for each in found.values()] == ["better", "better"]
    assert found["train/r1_x"]["which contains"] == "captions (40, paired), sampling seeds"
    assert found["train/fd_x"]["which contains"] == "sampling seeds (3, paired)"
    assert [each["B is"] for each in compare(b, a).values()] == ["worse", "worse"]
    main(Options(a=a, b=b))
    shown = capsys.readouterr().out
    assert ONE_TRAINING in shown
    assert "Neither direction is better: train/vendi_x." in shown
    assert all(title in shown for title in HEADER)


def test_lists_are_trainings_and_pair_by_their_seeds(evaluation, compare):
    a, b = (
        ",".join(evaluation(f"{side}{seed}", shift, seed=seed) for seed in range(4))
        for side, shift in (("a", 0.0), ("b", 0.3))
    )
    found = compare(a, b)
    assert [each["B is"] for each in found.values()] == ["better", "better"]
    assert {each["which contains"] for each in found.values()} == {"training seeds (4, paired)"}
    other = ",".join(evaluation(f"c{seed}", seed=10 + seed) for seed in range(3))
    contains = compare(a, other)["train/fd_x"]["which contains"]
    assert contains == "training seeds (4 and 3)"
    assert "the other has one" in compare(a, evaluation("d"))["train/fd_x"]["which contains"]


def test_a_side_is_never_better_than_itself(evaluation, compare):
    a = evaluation("a")
    assert {each["B is"] for each in compare(a, a).values()} == {"inconclusive"}


def test_results_of_earlier_versions_are_compared_by_mean_and_deviation(compare, tmp_path):
    document = json.loads((EMOJI / "results.json").read_text())
    for each in document["rows"]:
        for name in ("per_seed", "per_caption"):
            each.pop(name, None)
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "results.json").write_text(json.dumps(document))
    found = compare(str(tmp_path / "earlier"), str(tmp_path / "earlier"))
    assert found["heldout/fd_efficientnet_lite0"]["B is"] == "inconclusive"
    assert found["heldout/fd_efficientnet_lite0"]["which contains"] == "sampling seeds (3 and 3)"


def test_runs_are_compared_by_their_last_validation(tmp_path, compare):
    for side, losses in {"a": (1.0, 1.1, 1.2), "b": (2.0, 2.11, 2.19)}.items():
        for seed, loss in enumerate(losses):
            run = tmp_path / side / f"seed_{seed}" / "tiny" / "20260101-000000"
            run.mkdir(parents=True)
            point = {"swept": {"seed": str(seed)}, "command": ["ldm.train"]}
            (tmp_path / side / f"seed_{seed}" / "point.json").write_text(json.dumps(point))
            (run / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "process": {"_target_": "p"}}))
            lines = [{"step": 1, "val/loss_fixed": 9.0}, {"step": 2, "val/loss_fixed": loss, "val/psnr": 1.0}]
            (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert found["val/loss_fixed"]["B is"] == "worse"
    assert found["val/loss_fixed"]["which contains"].startswith("training seeds (3, paired)")
    (tmp_path / "a" / "seed_0" / "tiny" / "20260101-000000" / "config.yaml").write_text(
        yaml.safe_dump({"seed": 0, "process": {"_target_": "q"}})
    )
    with pytest.raises(ValueError, match=r"different protocols.*process._target_ is q and p"):
        compare(str(tmp_path / "a"), str(tmp_path / "b"))


def test_runs_of_earlier_versions_have_the_defaults_and_names_of_today(tmp_path, compare):
    """One run lacks an option and has an old name; its data lie elsewhere, with the same contents."""
    times = {"_target_": "ldm.diffusion.process.logit_normal_timesteps", "_partial_": True}
    for name, own, root in (
        ("new", times | {"mean": 0.0, "std": 1.0, "shift": 1.0}, "data/here"),
        ("old", times | {"_target_": "ldm.diffusion.densities.logit_normal"}, "data/there"),
        ("other", times | {"shift": 3.0}, "data/here"),
    ):
        (tmp_path / name).mkdir()
        config = {"process": {"times": own}, "data": {"root": root, "size": 8}}
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(config))
        (tmp_path / name / "run.json").write_text(json.dumps({"inputs": {"data.root": "d" * 64}}))
        (tmp_path / name / "metrics.jsonl").write_text(
            '{"step": 1, "val/loss_fixed": 1.0, "val/loss": 2.0}\n'
        )
    new, old, other = (str(tmp_path / name) for name in ("new", "old", "other"))
    assert set(compare(new, old)) == {"val/loss_fixed", "val/loss"}
    # how timesteps are chosen is how it was trained; the loss over them is another measure then
    assert set(compare(old, other)) == {"val/loss_fixed"}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"sampler": "ddim(steps=9)"},
            r"a{12} and b{12}: sampler is ddim\(steps=5\) and ddim",
        ),
        ({"sets": [{"name": "train", "captions": 41}]}, r"sets\[0\].captions is 40 and 41"),
    ],
)
def test_rows_of_different_protocols_are_refused(evaluation, compare, change, sentence):
    a, b = evaluation("a"), evaluation("b", hash="b" * 64, **change)
    with pytest.raises(ValueError, match=sentence):
        compare(a, b)
    assert compare(a, b, ruler=True)["train/fd_x"]["which contains"] == "sampling seeds (3 and 3)"


def test_what_can_not_be_compared_is_refused(evaluation, compare, tmp_path):
    a = evaluation("a")
    (tmp_path / "empty").mkdir()
    for b, sentence in {
        "empty": "has no results: it holds neither results.json",
        "nowhere": "has no results",
        "": "a side is empty",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            compare(a, b and str(tmp_path / b))
    other = evaluation("other", rows=[row("psnr", [[1.0]], [], True)])
    with pytest.raises(ValueError, match="no measure in common"):
        compare(a, other)
    again = evaluation("again")
    path = tmp_path / "again" / "results.json"
    path.write_text(path.read_text().replace('"sha256": "again"', '"sha256": "a"'))
    with pytest.raises(ValueError, match="are results of one training"):
        compare(f"{a},{again}", a)
    with pytest.raises(ValueError, match=r"level=1\.5 must lie between 0 and 1"):
        compare(a, a, level=1.5)


def test_ten_evaluations_of_2000_pictures_take_seconds(evaluation, compare):
    """Also with one training a side, where each caption is resampled; the clock of this process counts."""
    sides = [[evaluation(f"{side}{n}", seed=n, captions=2000) for n in range(5)] for side in "ab"]
    started = time.process_time()
    compare(*map(",".join, sides))
    compare(sides[0][0], sides[1][0])
    assert time.process_time() - started < 20
