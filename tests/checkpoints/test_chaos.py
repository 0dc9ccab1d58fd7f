"""A few of the ends that `python -m benchmarks.chaos` brings about by the hundred."""

import json
import shutil
from dataclasses import replace

import pytest

from benchmarks.chaos import ranks, resumes, saver, trainings, world
from benchmarks.chaos.__main__ import FAULTS
from benchmarks.chaos.disk import damage, flip
from benchmarks.chaos.kills import kill
from benchmarks.chaos.resumes import faults_of
from benchmarks.chaos.world import STEPS
from benchmarks.harness import bring_about
from ldm.checkpoints import training_state

FAST = {"saves", "disk"}  # of the resumes, those of one process are in tests/stages/test_resume.py
CHOSEN = {"SIGKILL to a training", "SIGTERM to a training"}
FEW = 16  # steps, three epochs, of trainings that are killed and stopped; those of the long form take 40
SIGNALLED = next(cell for cell in ranks.CELLS if cell.name == "two ranks, SIGTERM to one")
SHARE = [kind for kind in FAULTS if kind.area in FAST or kind.name in CHOSEN]
SHARE += faults_of([replace(SIGNALLED, ends=SIGNALLED.ends[:2])], ranks.interrupted)  # by step 12


@pytest.fixture(scope="module", autouse=True)
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainings, world):
            patch.setattr(module, "SMALL", (*world.SMALL, f"steps={FEW}"))
        patch.setattr(ranks, "STEPS", FEW)
        yield


def test_the_long_form_is_long_enough():
    tries = {kind.name: kind.tries[0] for kind in FAULTS}
    assert tries["SIGKILL at any moment"] + tries["SIGKILL inside a save"] >= 300
    assert tries["SIGKILL inside a save"] >= 100
    assert tries["SIGKILL to a training"] >= 30


def test_the_matrix_has_every_step_on_one_rank_and_on_two_with_and_without_loader_processes():
    whole = {cell.name for cell in (*resumes.CELLS, *ranks.CELLS) if len(cell.ends) == STEPS}
    ways = ("at every step", "in every accumulation")
    assert whole >= {*ways, *(f"two ranks, {way}" for way in ways)}
    assert whole >= {
        "at every step, two loader processes",
        "two ranks, at every step, two loader processes each",
    }


@pytest.mark.parametrize("kind", SHARE, ids=lambda kind: kind.name)
def test_nothing_is_lost(kind):
    verdict = bring_about(kind, kind.tries[1])
    assert verdict.failures == []
    assert verdict.lost <= verdict.interval
    assert verdict.tries >= kind.tries[1] or "lines" in verdict.says


def test_the_command_prints_a_table_and_writes_results(command, tmp_path):
    out = tmp_path / "chaos.json"
    said = command("benchmarks.chaos.__main__", "--short", "--area", "disk", "--out", out).out
    assert "| disk | one bit flipped | 8 | 0 | 1 of 1 |" in said
    document = json.loads(out.read_text())
    assert {row["name"] for row in document["results"]} >= {"disk full", "folder read-only", "file cut"}
    assert document["provenance"]["commit"]


def test_a_saver_that_removes_the_old_state_first_is_noticed(monkeypatch, tmp_path):
    def careless(root, step, write, *, keep):
        shutil.rmtree(root, ignore_errors=True)
        return training_state.save_state(root, step, write, keep=keep)

    monkeypatch.setattr(saver, "save_state", careless)
    assert any("there is no state" in sentence for sentence in kill(tmp_path, 6, inside=True).failures)


def test_a_manifest_that_is_not_looked_at_is_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(training_state, "is_whole", lambda folder: (folder / "state.ckpt").is_file())
    failures = damage(flip, tmp_path, 6).failures
    assert any("was taken" in sentence for sentence in failures)
