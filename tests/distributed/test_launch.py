"""Facts about the process that starts ranks: it tells what ended a training, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from ldm.config import CONF, build, plain
from ldm.distributed import LOST
from ldm.distributed.launch import launch, ranks_to_start

ROOT = Path(__file__).parents[2]
PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from ldm.distributed.launch import follow_watcher
follow_watcher()
rank = int(os.environ["RANK"])
def note(word):
    Path(sys.argv[1], f"{word}{rank}").write_text(str(os.getpid()))
def log_metrics():
    time.sleep(600)
note("pid")
while len(list(Path(sys.argv[1]).glob("pid*"))) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.01)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(code)`: what `launch` answers for ranks of this code, and their processes."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def call(code: str, *, patience: float = 60, count: int = 2):
        answer = launch([sys.executable, "-c", PRELUDE + code, str(tmp_path)], count, patience=patience)
        return answer, pids(tmp_path)

    return call


@pytest.fixture
def watcher(tmp_path):
    """`watcher(code)`: a process that launches two ranks of this code."""
    started = []

    def start(code: str) -> subprocess.Popen[bytes]:
        ranks = [sys.executable, "-c", PRELUDE + code, str(tmp_path)]
        command = f"from ldm.distributed.launch import launch\nprint(launch({ranks!r}, 2, patience=60))"
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(
            subprocess.Popen([sys.executable, "-c", command], env=environment, stdout=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120  # of a test that hangs
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("pid*"))]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_ranks_get_their_numbers_and_end_well(run, tmp_path):
    code = "note('-'.join(os.environ[n] for n in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')))"
    answer, found = run(code, count=3)
    assert answer == (0, "")
    names = {path.name for path in tmp_path.glob("*-*")}
    assert names == {f"{rank}-3-127.0.0.1{rank}" for rank in range(3)}
    assert len(set(found)) == 3


def test_a_killed_rank_is_named_and_the_others_are_ended(run, monkeypatch):
    monkeypatch.setattr("ldm.distributed.launch.GRACE", 1.0)
    (status, cause), found = run(
        "time.sleep(0.2)\nif rank: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    )
    assert status == 1
    assert cause.startswith(
        f"rank 1 (process {found[1]}) was killed by SIGKILL, perhaps for want of memory; "
    )
    assert not any(map(is_alive, found))


def test_what_a_rank_says_at_its_end_is_told(run):
    code = f"if rank: sys.exit('ldm: no room on the disk')\ntime.sleep(0.3)\nsys.exit({LOST})"
    (status, cause), found = run(code)
    assert status == 1
    assert cause.startswith(
        f"rank 1 (process {found[1]}) ended: no room on the disk; the other ranks were ended"
    )


def test_a_rank_that_ends_well_and_too_early_is_named(run):
    code = f"if rank: sys.exit(0)\ntime.sleep(0.5)\nsys.exit({LOST})"
    (status, cause), found = run(code)
    assert status == 1
    assert cause.startswith(f"rank 1 (process {found[1]}) ended its training before the others did; ")


def test_what_the_first_rank_has_said_is_not_said_again(run, capfd):
    answer, _ = run("sys.exit('ldm: the data are missing')")
    assert answer == (1, "")
    assert capfd.readouterr().err.count("the data are missing") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_ranks_that_do_nothing_are_ended_and_their_places_told(run):
    code = "if rank: os.kill(os.getpid(), signal.SIGSTOP)\nlog_metrics()"
    (status, cause), found = run(code, patience=2)
    assert status == 1
    assert cause.startswith("no rank has done anything for 2 s: ")
    assert f"rank 0 (process {found[0]}) is in log_metrics (" in cause
    assert f"rank 1 (process {found[1]}) is stopped" in cause
    assert not any(map(is_alive, found))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_rank_that_computes_keeps_the_others_waiting(run):
    # more seconds of the processor than `patience` has of the clock, however busy the machine is
    code = (
        "while rank and time.process_time() < 2.5: pass\n"
        "note('end')\n"
        "while not Path(sys.argv[1], 'end1').exists(): time.sleep(0.01)"
    )
    answer, _ = run(code, patience=2)
    assert answer == (0, "")


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_no_rank_outlives_its_watcher(watcher, tmp_path):
    process = watcher("log_metrics()")
    wait_for(lambda: len(pids(tmp_path)) == 2)
    process.kill()
    process.wait()
    wait_for(lambda: not any(map(is_alive, pids(tmp_path))))


def test_a_signal_reaches_every_rank_once(watcher, tmp_path):
    process = watcher(
        "signal.signal(signal.SIGTERM, lambda *_: note('term'))\n"
        "note('ready')\n"
        "signal.pause()\n"
        "time.sleep(0.3)"
    )
    wait_for(lambda: len(list(tmp_path.glob("ready*"))) == 2)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert out.decode().strip() == "(0, '')"
    assert len(list(tmp_path.glob("term*"))) == 2


def test_a_signal_that_comes_while_ranks_are_started_reaches_them_all():
    code = '[ "$RANK" = 0 ] && kill -TERM $PPID; exec sleep 60'
    status, cause = launch(["sh", "-c", code], 8, patience=60)
    assert status == 1
    assert "was killed by SIGTERM" in cause


def test_ranks_that_a_signal_killed_are_waited_for_no_longer_than_any_that_failed(run, monkeypatch):
    monkeypatch.setattr("ldm.distributed.launch.GRACE", 1.0)
    (status, cause), found = run(
        "if rank: signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(0.5)\n"
        "if not rank: os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(600)"
    )
    assert status == 1
    assert cause.startswith(f"rank 0 (process {found[0]}) was killed by SIGTERM; ")
    assert not any(map(is_alive, found))


@pytest.mark.parametrize(
    ("trainer", "count"),
    [({"devices": 1}, 1), ({"devices": 2}, 2), ({"devices": "auto"}, 1)],
)
def test_as_many_ranks_are_started_as_there_are_devices(trainer, count, monkeypatch):
    assert ranks_to_start({"accelerator": "cpu"} | trainer) == count
    monkeypatch.setenv("WORLD_SIZE", "2")  # started by torchrun
    assert ranks_to_start({"accelerator": "cpu"} | trainer) == 1


def test_trainers_that_this_machine_can_not_start_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"trainer\.devices=3: there are 2 GPUs here; write auto"):
        ranks_to_start({"accelerator": "gpu", "devices": 3})
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2: .* srun or torchrun"):
        ranks_to_start({"accelerator": "gpu", "devices": 2, "num_nodes": 2})


@pytest.mark.parametrize("path", sorted((CONF / "trainer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_trainer_can_be_built(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [f"trainer={path.stem}"])
    assert build(plain(config.trainer)).max_steps == config.steps
