"""A record is believed only if its log shows it."""

import json

import pytest
import yaml

from experiments.records import HOME, RECORD, TRACK, Options, add, main, verified

VALIDATIONS = ((24, 1.5, 10.0, 9.0), (49, 1.2, 20.0, 18.0), (74, 0.9, 30.0, 27.5))


def lines_of(validations):
    names = ("step", "val/loss_fixed", "val/seconds", "val/cpu_seconds")
    found = [{"step": 9, "train/loss": 2.0}, *(dict(zip(names, each, strict=True)) for each in validations)]
    return "".join(f"{json.dumps(line)}\n" for line in found)


@pytest.fixture
def run(tmp_path):
    """`run(validations, **changes)`: the folder of a run whose target was 1.0."""

    def make(validations=VALIDATIONS, **changes):
        folder = tmp_path / "run"
        folder.mkdir(exist_ok=True)
        config = {"target": 1.0}
        for name, value in (TRACK | changes).items():
            node = config
            *above, last = name.split(".")
            for key in above:
                node = node.setdefault(key, {})
            node[last] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "metrics.jsonl").write_text(lines_of(validations))
        made = {
            "command": "python -m ldm.train target=1.0", "commit": "c" * 40, "dirty": False, "machine": "x",
            "torch": "2", "inputs": {"data.root": "d" * 64},
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(made))
        return folder

    return make


def test_a_record_is_what_its_log_shows(run, tmp_path, capsys):
    record = add(run(), tmp_path / "record")
    assert (record.loss, record.step, record.seconds, record.cpu_seconds) == (1.0, 74, 30.0, 27.5)
    assert verified(tmp_path / "record") == record
    main(Options(verb="verify", folder=str(tmp_path / "record")))
    assert "emoji to 1.0 in 30.0 s (27.5 s of CPU), 75 steps; its log shows it" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("validations", "sentence"),
    [
        (VALIDATIONS[:2], "is not the first whose val/loss_fixed is at most 1.0"),
        ((*VALIDATIONS, (99, 0.8, 40.0, 36.0)), "is not the first"),
        ((), "is not the first"),
        (
            (VALIDATIONS[1], VALIDATIONS[0], VALIDATIONS[2]),
            "step must rise between validations, and goes from 49 to 24",
        ),
        (
            (VALIDATIONS[0], (74, 0.9, 9.0, 27.0)),
            "val/seconds must rise between validations, and goes from 10.0 to 9.0",
        ),
    ],
)
def test_a_run_that_shows_no_record_makes_none(run, tmp_path, validations, sentence):
    with pytest.raises(ValueError, match=sentence):
        add(run(validations), tmp_path / "record")
    assert not (tmp_path / "record").exists()


@pytest.mark.parametrize(
    "changes", [{"codec.autoencoder": "runs/mine"}, {"process.prediction._target_": "ldm.diffusion.Eps"}]
)
def test_other_latents_and_predictions_are_another_track(run, tmp_path, changes):
    with pytest.raises(ValueError, match="and this record needs"):
        add(run(**changes), tmp_path / "record")


@pytest.mark.parametrize("path", sorted(HOME.glob(f"*/{RECORD}")), ids=lambda path: path.parent.name)
def test_the_records_that_are_kept_are_shown_by_their_logs(path):
    assert verified(path.parent).loss > 0


def test_a_changed_record_is_refused(run, tmp_path):
    add(run(), tmp_path / "record")
    path = tmp_path / "record" / RECORD
    claim = json.loads(path.read_text())
    for change, sentence in (
        ({"seconds": 3.0}, "at seconds 30.0, not 3.0"),
        ({"loss": 1.3}, "target is 1.0, and this record needs 1.3"),
        ({"files": {"../x": "0"}}, "is damaged"),
        ({"step": "74"}, "is damaged"),
        ({"more": 1}, "is damaged"),
    ):
        path.write_text(json.dumps(claim | change))
        with pytest.raises(ValueError, match=sentence):
            verified(tmp_path / "record")
    path.write_text(json.dumps(claim))
    log = tmp_path / "record" / "metrics.jsonl"
    log.write_text(log.read_text().replace("30.0", "3.0"))
    with pytest.raises(ValueError, match="was changed"):
        verified(tmp_path / "record")
    log.unlink()
    with pytest.raises(ValueError, match="is missing or was changed"):
        verified(tmp_path / "record")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"verb": "check"}, "check is unknown: write verify, add or replay"),
        ({}, "folder= is empty"),
        ({"folder": "/nowhere"}, "there is no record at /nowhere"),
        ({"verb": "add", "folder": "/nowhere"}, "name= is empty"),
        ({"verb": "add", "folder": "/nowhere", "name": "x"}, "is no run with a target"),
    ],
)
def test_commands_that_can_not_be_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        main(Options(**options))
