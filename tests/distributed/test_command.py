"""The command, with two ranks on the CPU: one run, one voice, and a network as good as one rank's."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.train import main as train

ROOT = Path(__file__).parents[2]
TINY = (
    "+experiment=emoji_vae",
    "name=tiny",
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.blocks_per_level=1",
    "data.size=16",
    "steps=3",
    "trainer.val_check_interval=3",
    "trainer.precision=32",
)


@pytest.fixture
def alone(monkeypatch, emoji, tmp_path):
    """`alone(*arguments)`: the command as one rank in this process; the folder of its run."""

    def call(*arguments: str) -> Path:
        runs = tmp_path / "alone"
        monkeypatch.setattr(
            sys, "argv", ["ldm.train", *TINY, f"data.root={emoji}", f"runs={runs}", *arguments]
        )
        train()
        return next((runs / "tiny").iterdir())

    return call


def validation(run: Path) -> dict[str, float]:
    """What the last line of a run's log says of its network."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return {name: value for name, value in json.loads(lines[-1]).items() if name.startswith("val/")}


def test_two_ranks_make_one_run_and_a_network_like_that_of_one(alone, emoji, tmp_path):
    runs = tmp_path / "together"
    arguments = [*TINY, f"data.root={emoji}", f"runs={runs}", "batch_size=2", "trainer=cpu_ddp"]
    done = subprocess.run(
        [sys.executable, "-m", "ldm.train", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("a step: 2 ranks x 2 samples x 1 accumulated = 4 samples; optimizer.lr=") == 1
    assert done.stdout.count("bundle: ") == 1
    (run,) = (runs / "tiny").iterdir()
    record = json.loads((run / "run.json").read_text())
    assert "trainer=cpu_ddp" in record["command"]
    ours, theirs = validation(run), validation(alone("batch_size=4"))
    assert set(ours) >= {"val/loss", "val/psnr"}
    assert ours == pytest.approx(theirs, rel=1e-3)
