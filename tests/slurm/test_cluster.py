"""Trainings and sweeps on a real SLURM cluster of one machine: `make slurm`, some twenty minutes.

Needs LDM_SLURM=1 and a cluster that sbatch, squeue and scontrol of this shell mean, with two GPUs a node that
need not be real (CLUSTER_GPUS=2 slurm/cluster.sh up). A test submits what a user would, looks at files and
at the queue alone, and cancels what it has started.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ldm.io.reading import hash_file

ROOT = Path(__file__).parents[2]
CYCLES = int(os.environ.get("LDM_SLURM_CYCLES", 20))
LIMIT = 1800 + 120 * CYCLES  # seconds for any of these tests
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
CPU = ("--gpus-per-node=0", "--cpus-per-task=1", "--time=60", "--signal=B:USR1@60")
TINY = (
    "batch_size=8",
    "data.size=16",
    "trainer.precision=32",
    "trainer.log_every_n_steps=1",
    "+trainer.limit_val_batches=1",
    "callbacks=default",
)

pytestmark = [
    pytest.mark.skipif("LDM_SLURM" not in os.environ, reason="needs a cluster: make slurm"),
    pytest.mark.timeout(LIMIT),
]


def ask(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def wait_for(condition: Callable[[], object], *, seconds: float = 1800.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing came of it in time"
        time.sleep(0.1)


class Job:
    """A submitted job, its output and its state."""

    def __init__(self, number: str, output: Path) -> None:
        self.number, self.output = number, output

    @property
    def facts(self) -> dict[str, str]:
        words = ask("scontrol", "show", "job", "--oneliner", self.number).splitlines()[0].split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def ended(self) -> bool:
        return self.facts["JobState"] in ENDED

    @property
    def words(self) -> str:
        """Its output, in which tasks that write at once cut each other's characters."""
        return self.output.read_text(errors="replace") if self.output.is_file() else ""


@pytest.fixture
def submit(tmp_path) -> Iterator[Callable[..., Job]]:
    """`submit(script, *arguments, options=...)`: a job, cancelled when the test ends."""
    jobs = []

    def call(script: str, *arguments: str, options: tuple[str, ...] = CPU) -> Job:
        output = tmp_path / f"job{len(jobs)}.out"
        number = ask("sbatch", "--parsable", f"--output={output}", *options, f"slurm/{script}", *arguments)
        jobs.append(Job(number, output))
        return jobs[-1]

    yield call
    for job in jobs:
        subprocess.run(["scancel", job.number], check=False)


@pytest.fixture
def train_here():
    """`train_here(*arguments)`: the same training without SLURM, with as many threads as a job of CPU has."""

    def call(*arguments: str) -> None:
        threads = {"OMP_NUM_THREADS": "1"}  # another number adds in another order, and ends nearby
        command = [sys.executable, "-m", "ldm.train", *arguments]
        subprocess.run(command, cwd=ROOT, env=os.environ | threads, check=True)

    return call


@pytest.fixture
def whole_emoji(tmp_path) -> Path:
    """All emoji and their latents: processes that start together must not each encode them."""
    root = tmp_path / "emoji"
    ask(sys.executable, "-m", "data_prep.emoji", f"out={root}")
    codec = ("autoencoder=shipped", "text_encoder=shipped", "texts=states")
    ask(sys.executable, "-m", "data_prep.latents", f"root={root}", "size=16", *codec)
    return root


def the_run(root: Path, name: str) -> Path:
    """The one run directory of an experiment."""
    (run,) = (root / name).iterdir()
    return run


def logged_steps(root: Path, name: str) -> list[int]:
    lines = [line for path in (root / name).glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["step"] for line in lines if line.endswith("}") and "train/loss" in line]


def test_a_job_that_is_stopped_again_and_again_ends_with_the_weights_of_one_that_never_was(
    submit, train_here, emoji, tmp_path
):
    """Half of the stops are the signal before the limit, half are preemptions by SLURM."""
    steps = 10 * CYCLES
    arguments = (*TINY, f"steps={steps}", "name=stopped", f"data.root={emoji}", "logger=wandb")
    root = tmp_path / "runs"
    job = submit("train.sbatch", *arguments, f"runs={root}")
    for cycle in range(CYCLES):
        seen = len(logged_steps(root, "stopped"))
        wait_for(lambda: len(logged_steps(root, "stopped")) > seen or job.ended)  # noqa: B023
        assert not job.ended, job.words
        if cycle % 2:
            ask("scontrol", "requeue", job.number)
        else:
            ask("scancel", "--signal=USR1", "--batch", job.number)
        wait_for(lambda: int(job.facts["Restarts"]) > cycle)  # noqa: B023
    wait_for(lambda: job.ended)
    assert job.facts["JobState"] == "COMPLETED", job.words
    assert int(job.facts["Restarts"]) == CYCLES

    run = the_run(root, "stopped")
    logged = logged_steps(root, "stopped")
    assert logged == sorted(set(logged))  # no step twice, though some were taken twice
    assert logged[-1] == steps - 1
    assert len({path.name.rsplit("-", 1)[1] for path in (run / "wandb").glob("offline-run-*")}) == 1
    train_here(*arguments, f"runs={tmp_path / 'whole'}", "logger=none")
    whole = the_run(tmp_path / "whole", "stopped")
    assert hash_file(run / "bundle" / "backbone.safetensors") == hash_file(
        whole / "bundle" / "backbone.safetensors"
    )


def test_tasks_on_two_nodes_train_as_one(submit, whole_emoji, tmp_path):
    job = submit(
        "train.sbatch",
        *(*TINY, "steps=3", "name=two", f"data.root={whole_emoji}", f"runs={tmp_path / 'runs'}"),
        *("trainer=ddp", "trainer.accelerator=cpu"),
        options=(*CPU, "--nodes=2", "--export=ALL,MASTER_ADDR=127.0.0.1,GLOO_SOCKET_IFNAME=lo"),
    )
    wait_for(lambda: job.ended)
    assert job.facts["JobState"] == "COMPLETED", job.words
    assert "a step: 2 ranks x 8 samples" in job.words
    assert (the_run(tmp_path / "runs", "two") / "bundle" / "config.yaml").is_file()


def test_an_evaluation_by_two_tasks_writes_its_results_once(submit, whole_emoji, tmp_path):
    job = submit(
        "evaluate.sbatch",
        *("protocol=quick", "steps=1", f"data.root={whole_emoji}", f"out={tmp_path / 'out'}"),
        options=(*CPU, "--ntasks-per-node=2", "--export=ALL,MASTER_ADDR=127.0.0.1,GLOO_SOCKET_IFNAME=lo"),
    )
    wait_for(lambda: job.ended)
    assert job.facts["JobState"] == "COMPLETED", job.words
    assert job.words.count("report: ") == 1
    assert (tmp_path / "out" / "results.json").is_file()


@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        ((), ["data.root=/nowhere"], "no data set at /nowhere"),
        (("--ntasks-per-node=2",), ["trainer.devices=1"], "trainer.devices=1 but --ntasks-per-node=2"),
        (("--gpus-per-node=2",), ["trainer=gpu"], "--ntasks-per-node=1 but 2 GPUs a node"),
        ((), ["runs=/proc/runs"], "runs=/proc/runs can't be written"),
    ],
)
def test_a_job_that_can_not_succeed_is_refused_before_its_tasks_start(
    submit, emoji, tmp_path, options, arguments, sentence
):
    given = [f"data.root={emoji}", f"runs={tmp_path / 'runs'}", "steps=1", *arguments]
    job = submit("train.sbatch", *TINY, *given, options=(*CPU, *options))
    wait_for(lambda: job.ended)
    assert job.facts["JobState"] == "FAILED"
    assert f"ldm: {sentence}" in job.words
    assert "srun" not in job.words
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_sweep_of_six_points_is_one_array_and_one_table(whole_emoji, tmp_path):
    folder = tmp_path / "sweep" / "learning_rate"
    launcher = ("hydra/launcher=slurm", "hydra.launcher.wait=true", "hydra.launcher.poll=2")
    options = f"hydra.launcher.options={json.dumps(CPU)}"
    given = (f"hydra.sweep.dir={folder}", "steps=20", f"data.root={whole_emoji}")
    told = ask(sys.executable, "-m", "ldm.train", "+sweep=learning_rate", *launcher, options, *TINY, *given)
    assert "an array of 6 of 6 points" in told
    told = ask(sys.executable, "-m", "experiments.sweeps", f"folder={folder}", f"out={tmp_path / 'out'}")
    assert "6 points, 6 of them finished" in told
    for point in folder.glob("*/point.json"):
        assert (the_run(point.parent, "learning_rate") / "bundle" / "config.yaml").is_file()
