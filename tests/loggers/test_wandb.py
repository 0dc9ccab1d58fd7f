"""Facts about what W&B gets of a training, and about services that are out of order."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import wandb
import yaml

from benchmarks.processes import is_alive, wait_for
from benchmarks.wandb_faults import recording
from benchmarks.wandb_services import (
    KEY,
    Service,
    answers,
    black_hole,
    drips,
    errs,
    knows_nobody,
)
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.pace import Pace
from ldm.callbacks.pictures import SampleGrid
from ldm.loggers import wandb_log, wandb_sending
from ldm.loggers.background import BackgroundLogger, end_all
from ldm.loggers.metrics_log import MetricsLog
from ldm.loggers.wandb_log import WandbRecorder, wandb_logger
from ldm.loggers.wandb_sending import own_settings, unsendable

PROMPTS, SEEDS = ["a cat", "a dog"], [0, 1]
RATES = [0.0005, 0.001, 0.0015, 0.002]  # of four steps' warmup


@pytest.fixture(autouse=True)
def _nobody_logged_in(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # else a child makes its fonts again
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "run"))


@pytest.fixture
def run(tmp_path) -> Path:
    """A run directory with its config and record, as a training finds it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": 4, "optimizer": {"lr": 0.002}}))
    (folder / "run.json").write_text(json.dumps({"commit": "0123abc", "dirty": False}))
    return folder


@pytest.fixture
def service(monkeypatch):
    """`service(behaviour)`: a service with a key for it in the environment."""
    opened = []

    def start(behaviour) -> Service:
        opened.append(Service(behaviour).__enter__())
        monkeypatch.setenv("WANDB_BASE_URL", opened[-1].url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        return opened[-1]

    yield start
    for each in opened:
        each.vanish()


def logger_of(folder: Path, **options: Any) -> BackgroundLogger:
    return wandb_logger(project="ldm", name="tiny", folder=str(folder), **options)


def record_of(folder: Path) -> list[dict[str, Any]]:
    """What a run's records hold, oldest first, read by W&B's own command."""
    found = []
    for record in sorted((folder / "wandb").glob("offline-run-*")):
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(record)]
        text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout
        found += [json.loads(line) for line in text.splitlines()]
    return found


@pytest.fixture
def train(diffusion_stage, latents, make_trainer, run):
    """`train(logger)`: four steps with a validation after each second one; returns the local log's lines."""

    def fit(logger: BackgroundLogger) -> list[dict[str, Any]]:
        log = MetricsLog(run / "metrics.jsonl")
        grid = SampleGrid(prompts=PROMPTS, seeds=SEEDS, folder=str(run / "samples"))
        options = {"val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1}
        callbacks = [Gradients(clip=1.0), Pace(), grid]
        trainer = make_trainer(4, *callbacks, logger=[log, logger], **options)
        trainer.fit(diffusion_stage(), datamodule=latents)
        return [json.loads(line) for line in log.path.read_text().splitlines()]

    return fit


def test_what_is_read_back_from_the_record_is_what_was_logged(train, run):
    logger = logger_of(run, artifact=True)
    lines = train(logger)
    bundle = run / "bundle"
    bundle.mkdir()
    (bundle / "weights.safetensors").write_bytes(b"weights")
    end_all([logger], bundle)

    record = record_of(run)
    (opening,) = (each["run"] for each in record if each["type"] == "run")
    config = opening["config"]["update"]
    assert (config["optimizer"], config["run"]) == ({"lr": 0.002}, {"commit": "0123abc", "dirty": False})
    assert opening["resume"] is True

    history = [each["history"]["item"] for each in record if each["type"] == "history"]
    numbers = [{name: value for name, value in item.items() if name[0] != "_"} for item in history]
    assert [item for item in numbers if any("loss" in name for name in item)] == lines
    trained = {"loss", "grad_norm", "lr", "samples_per_second", "memory_gb"}
    assert {f"train/{name}" for name in trained} | {"step"} == lines[0].keys()
    assert [item["train/lr"] for item in numbers if "train/lr" in item] == pytest.approx(RATES)
    bins = (f"val/loss_bin{number}" for number in range(4))
    assert {"val/loss", "val/loss_fixed", *bins, "step"} == lines[2].keys()

    sheets = [(item["step"], item["samples.path"]) for item in numbers if "samples.path" in item]
    files = next((run / "wandb").glob("offline-run-*")) / "files"
    for step, path in sheets:
        assert (files / path).read_bytes() == (run / "samples" / f"step={step:06d}.png").read_bytes()
    assert [step for step, _ in sheets] == [2, 4]

    kept = [each["artifact"] for each in record if each["type"] == "artifact"]
    contents = [each["manifest"]["contents"] for each in kept]
    parts = [{part["path"]: Path(part["local_path"]) for part in each} for each in contents]
    assert all(path.is_relative_to(run) for each in parts for path in each.values())  # not the home folder
    table = json.loads(parts[0]["samples_table.table.json"].read_text())
    assert table["columns"] == ["prompt", "seed 0", "seed 1"]
    assert [row[0] for row in table["data"]] == PROMPTS
    assert {cell["path"] for row in table["data"] for cell in row[1:]} <= parts[0].keys()
    assert (kept[-1]["name"], list(parts[-1])) == (f"bundle-{opening['run_id']}", ["weights.safetensors"])
    assert record[-1]["exit"]["exit_code"] == 0


def test_a_resumed_run_has_the_same_id(run):
    for _ in range(2):
        logger = logger_of(run)
        logger.log_metrics({"loss": 1.0}, step=0)
        logger.end(failed=True)
    names = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert (len(names), len({name.split("-")[3] for name in names})) == (2, 1)


def test_a_service_that_answers_gets_the_curves_of_all_starts(run, service):
    logger = logger_of(run)  # as long as there is no key
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.end(failed=True)
    with service(answers) as there:
        logger = logger_of(run, patience=60.0)
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.end()
    sent = [(line["step"], line["loss"]) for line in there.history]
    assert sent == [(0, 2.0), (1, 1.0)]
    assert "config.yaml" in there.files


def test_a_service_that_falls_silent_holds_the_end_up_no_longer_than_is_said(run, service, capsys):
    silent = service(answers)
    logger = logger_of(run, patience=1.0)
    logger.log_metrics({"loss": 1.0}, step=0)
    assert wait_for(lambda: (run / "wandb" / "sending.log").exists(), seconds=60)
    silent.behaviour = black_hole
    logger.log_metrics({"loss": 2.0}, step=1)
    logger.end()
    assert not logger._thread.is_alive()
    assert "the record was not sent" in (told := capsys.readouterr().out)
    assert "`wandb sync " in told
    items = [each["history"]["item"] for each in record_of(run) if each["type"] == "history"]
    assert [item["loss"] for item in items] == [1.0, 2.0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for W&B's process in /proc")
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_recording_process_that_hangs_or_dies_is_no_longer_there_at_the_end(
    run, monkeypatch, capsys, number
):
    monkeypatch.setattr(wandb_log, "CLOSING", 2.0)
    logger = logger_of(run, patience=1.0)
    assert wait_for(lambda: any(run.glob("wandb/offline-run-*/*.wandb")), seconds=60)
    core = recording(os.getpid())
    os.kill(core, number)
    for step in range(20_000):  # more than the pipe between them holds
        logger.log_metrics({"loss": 1.0}, step=step)
    logger.end()
    # a process that died may end the thread in time; what it did not record is said all the same
    assert re.search(r"W&B (has|was too slow)", capsys.readouterr().out)
    assert wait_for(lambda: not is_alive(core), seconds=10)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (black_hole, "does not answer within 1 s"),
        (drips, "does not answer within 1 s"),
        (errs, "500 Server Error"),
        (knows_nobody, "does not know the key"),
        (answers, None),
    ],
    ids=["black hole", "drips", "errors", "unknown key", "answers"],
)
def test_a_service_is_judged_within_its_time(service, monkeypatch, behaviour, reason):
    monkeypatch.setattr(wandb_sending, "ANSWER", 1.0)
    service(behaviour)
    found = unsendable(own_settings())
    assert found is None if reason is None else reason in found


def test_without_key_network_or_consent_nothing_is_sent(monkeypatch, service):
    assert "no key" in unsendable(own_settings())
    gone = service(answers)
    gone.vanish()
    assert f"{gone.url} does not answer as W&B does" in unsendable(own_settings())
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert unsendable(own_settings()) == "its mode is offline"


def test_a_recorder_that_sends_nothing_asks_who_we_are_and_follows_no_settings_of_its_folder(
    service, run, monkeypatch, capfd, tmp_path
):
    asked = []

    def errs_and_notes(handler, body):
        asked.append(handler.path)
        errs(handler, body)

    service(errs_and_notes)
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nentity = stranger\nmode = disabled\n")
    wandb.teardown()  # as in a new process: W&B reads its settings again
    monkeypatch.chdir(tmp_path)
    recorder = WandbRecorder(project="p", name="n", folder=run, artifact=False, patience=1)
    recorder.metrics({"loss": 1.0}, 0)
    recorder.close(failed=False)
    assert "sending nothing" in capfd.readouterr().out
    assert recorder.run.settings.entity is None
    wandb.teardown()  # as at a process's exit
    assert asked == ["/graphql"]


def test_a_key_of_wandb_login_is_found(monkeypatch, service, tmp_path):
    there = service(knows_nobody)
    monkeypatch.delenv("WANDB_API_KEY")
    assert "there is no key" in unsendable(own_settings())
    machine = there.url.removeprefix("http://")
    (tmp_path / "netrc").write_text(f"machine {machine} login user password {KEY}\n")
    assert "does not know the key" in unsendable(own_settings())


def test_the_key_goes_to_no_service_that_a_folder_names(run, service, monkeypatch, tmp_path):
    asked = []
    stranger = service(lambda handler, body: asked.append(handler.path))
    own = service(answers)
    for folder in (run, tmp_path):  # the run's, and the one where the command is typed
        (folder / "wandb").mkdir()
        (folder / "wandb" / "settings").write_text(f"[default]\nbase_url = {stranger.url}\n")
    monkeypatch.delenv("WANDB_BASE_URL")
    settings = tmp_path / "home" / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"[default]\nbase_url = {own.url}\n")
    monkeypatch.chdir(tmp_path)
    logger = logger_of(run, patience=60.0)
    logger.log_metrics({"loss": 1.0}, step=0)
    logger.end()
    assert asked == []
    assert [line["loss"] for line in own.history] == [1.0]


def test_without_settings_of_the_user_the_key_is_for_the_public_service(monkeypatch, tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:1\n")
    monkeypatch.chdir(tmp_path)
    assert own_settings().base_url == wandb.Settings().base_url


def test_a_run_directory_of_a_stranger_sends_no_records_and_continues_no_run_of_its_own(
    run, service, capsys, tmp_path
):
    logger = logger_of(run)
    logger.log_metrics({"loss": 2.0}, step=0)
    logger.end(failed=True)
    forged = tmp_path / "downloaded"
    shutil.copytree(run, forged)
    (forged / "wandb_id").write_text("0123abcd")  # earlier versions took the id from here
    (record,) = (path.name for path in (run / "wandb").glob("offline-run-*"))
    with service(answers) as there:
        logger = logger_of(forged, patience=60.0)
        logger.log_metrics({"loss": 1.0}, step=1)
        logger.end()
    assert [line["loss"] for line in there.history] == [1.0]
    assert "1 of the records in " in capsys.readouterr().out
    (ours,) = (path.name for path in (forged / "wandb").glob("offline-run-*") if path.name != record)
    assert ours.rpartition("-")[2] not in (record.rpartition("-")[2], "0123abcd")
