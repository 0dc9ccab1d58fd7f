"""The trainings below a folder, as the page reads them over HTTP."""

import json
import os
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from ldm import UserError
from ldm.io.curves import read_curves
from ldm.serve import trainings
from ldm.serve.app import refused
from ldm.serve.trainings import POINTS, routes, thinned
from tests.serve.test_run_states import make_run


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder with a finished and a stopped run, and the evaluation of one."""
    root = tmp_path / "runs"
    for name, finished in (("emoji/one", True), ("sweep/point/two", False)):
        run = make_run(root / name, logged=6, saved=6, finished=finished)
        (run / "run.json").write_text(
            json.dumps({"config_hash": "x", "command": "python -m ldm.train", "pid": 1})
        )
        (run / "config.yaml").write_text("name: emoji\ntrainer: {max_steps: 8}\n")
        (run / "samples").mkdir()
        for step in (3, 6):
            Image.new("RGB", (8, 8), (step, 0, 0)).save(run / "samples" / f"step={step:06d}.png")
        (run / "report.md").write_text("# <b>report</b>")
    (root / "evaluation" / "mine").mkdir(parents=True)
    (root / "evaluation" / "mine" / "results.json").write_text("{}")
    (root / "evaluation" / "mine" / "report.md").write_text("# numbers")
    return root


@pytest.fixture
def client(runs) -> TestClient:
    app = FastAPI()
    app.state.runs = runs
    app.include_router(routes)
    app.add_exception_handler(UserError, refused)
    return TestClient(app)


def test_runs_are_listed_with_state_step_sheet_and_links(client):
    listed = {run["name"]: run for run in client.get("/v1/runs").json()["runs"]}
    assert listed.keys() == {"emoji/one", "sweep/point/two"}
    assert (listed["emoji/one"]["state"], listed["sweep/point/two"]["state"]) == ("finished", "stopped")
    assert (listed["emoji/one"]["step"], listed["emoji/one"]["steps"]) == (6, 8)
    assert listed["emoji/one"]["sheet"]["step"] == 6
    report = client.get(listed["emoji/one"]["links"][0]["url"])
    assert (report.text, report.headers["content-type"]) == ("# <b>report</b>", "text/plain; charset=utf-8")


def test_a_run_of_a_stranger_spoils_no_list(client, runs):
    for name in (b"\xff", b"<b>", b"scalar", b"types"):
        folder = runs / os.fsdecode(name)
        folder.mkdir()
        (folder / "run.json").write_text('["a", 1]')
    (runs / "scalar" / "config.yaml").write_text("root:x:0")
    (runs / "types" / "run.json").write_text('{"command": {}, "commit": 1, "host": "here"}')
    (runs / "<b>" / "metrics.jsonl").write_text(
        '{"step": 0, "loss": NaN}\n{"step": 1, "loss": Infinity}\n{"st'
    )
    listed = {run["name"]: run for run in client.get("/v1/runs").json()["runs"]}
    assert {"\ufffd", "<b>", "scalar", "types"} < listed.keys()
    assert listed["<b>"]["step"] == 2
    read = {name: client.get(f"/v1/runs/{run['id']}").json() for name, run in listed.items()}
    assert read["<b>"]["curves"] == {"loss": [[0, None], [1, None]]}
    assert [read["types"][name] for name in ("command", "commit", "host")] == [None, None, "here"]


def test_a_long_log_is_read_from_its_end(tmp_path, monkeypatch):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f'{{"step": {step}, "loss": 1.0}}\n' for step in range(100)))
    assert read_curves(log, most=100) == {"loss": [(step, 1.0) for step in (97, 98, 99)]}
    monkeypatch.setattr(trainings, "END", 100)
    assert trainings.logged_steps(log) == 100


def test_a_run_has_its_curves_sheets_and_command(client):
    name = next(run["id"] for run in client.get("/v1/runs").json()["runs"] if run["name"] == "emoji/one")
    run = client.get(f"/v1/runs/{name}").json()
    assert run["curves"] == {"train/loss": [[step, 1 / (step + 1)] for step in range(6)]}
    assert [sheet["step"] for sheet in run["sheets"]] == [3, 6]
    assert client.get(run["sheets"][0]["url"]).headers["content-type"] == "image/png"
    assert run["command"] == "python -m ldm.train"


def test_evaluations_are_linked(client):
    (found,) = client.get("/v1/runs").json()["evaluations"]
    assert found["title"] == "evaluation/mine"
    assert client.get(found["url"]).text == "# numbers"


def test_links_are_not_followed(client, runs, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"secret")
    (runs / "emoji" / "one" / "samples" / "step=000009.png").symlink_to(secret)
    (runs / "linked").symlink_to(runs / "emoji")
    listed = client.get("/v1/runs").json()["runs"]
    assert {run["name"] for run in listed} == {"emoji/one", "sweep/point/two"}
    (sheet,) = [run["sheet"] for run in listed if run["name"] == "emoji/one"]
    answer = client.get(sheet["url"])
    assert answer.status_code == 404
    assert "gone, or a link" in answer.json()["error"]


@pytest.mark.parametrize("name", ["..", "%2e%2e", "emoji", "0" * 16, "run.json"])
def test_what_is_no_id_is_no_run_and_no_file(client, name):
    some = client.get("/v1/runs").json()["runs"][0]["id"]
    for address in (f"/v1/runs/{name}", f"/v1/runs/{some}/files/{name}", f"/v1/runs/{name}/files/{name}"):
        answer = client.get(address)
        # a client makes another address of dots
        assert answer.status_code == 404 or answer.url.path in ("/v1/runs", "/v1/runs/", f"/v1/runs/{some}")


def test_damaged_configs_and_records_hide_no_run(client, runs):
    (runs / "emoji" / "one" / "config.yaml").write_text("trainer: [")
    (runs / "emoji" / "one" / "run.json").write_text("{")
    listed = {run["name"]: run for run in client.get("/v1/runs").json()["runs"]}
    assert listed["emoji/one"]["steps"] is None
    assert client.get(f"/v1/runs/{listed['emoji/one']['id']}").json()["command"] is None


def test_a_thinned_curve_keeps_its_peaks_and_its_ends():
    curve = [(step, 0.0) for step in range(10_000)]
    curve[1234], curve[8765] = (1234, 9.0), (8765, -9.0)
    kept = thinned(curve)
    assert len(kept) <= POINTS
    assert kept == sorted(kept)
    assert {(1234, 9.0), (8765, -9.0)} <= set(kept)
    assert thinned(curve[:POINTS]) == curve[:POINTS]


def test_a_folder_that_is_not_there_has_no_runs(tmp_path):
    app = FastAPI()
    app.state.runs = tmp_path / "none"
    app.include_router(routes)
    assert TestClient(app).get("/v1/runs").json()["runs"] == []
