"""Facts about `metrics.jsonl`."""

import json
import os
import signal

import pytest
from pytorch_lightning import Callback

from benchmarks.chaos.resumes import EndedError, InValidation
from ldm.callbacks.saving import SaveStates, StoppedBySignal
from ldm.checkpoints.training_state import newest_state
from ldm.io.curves import read_curves
from ldm.loggers.metrics_log import MetricsLog


def lines(log: MetricsLog) -> list[dict]:
    return [json.loads(line) for line in log.path.read_text().splitlines()]


def test_a_line_is_a_step(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.log_metrics({"loss": 1.5, "epoch": 0}, step=3)
    log.log_metrics({"epoch": 0}, step=4)
    assert lines(log) == [{"step": 3, "loss": 1.5}]


def test_rewinding_drops_later_steps_and_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.rewind(5)  # no file: nothing to do
    for step in range(4):
        log.log_metrics({"loss": step}, step=step)
    with log.path.open("a") as stream:
        stream.write('{"step": 4, "lo')
    log.rewind(2)
    assert lines(log) == [{"step": 0, "loss": 0}, {"step": 1, "loss": 1}]
    assert list(tmp_path.iterdir()) == [log.path]


DAMAGED = [
    b"{bad}",
    b'{"a": 1}',
    b"\xff\xfe",
    b"[" * 10**5,
    b'{"step": 1, "x": "$(touch x)"}',
    b'{"step": "1"}',
]


@pytest.mark.parametrize("damage", [*DAMAGED, b"\0" * 37])
def test_a_damaged_line_does_not_stop_a_resume_and_is_counted(tmp_path, capsys, damage):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in range(4):
        log.log_metrics({"loss": step}, step=step)
    first, *rest = log.path.read_bytes().splitlines(keepends=True)
    ending = b"" if damage.startswith(b"\0") else b"\n"
    log.path.write_bytes(first + damage + ending + b"".join(rest))
    assert read_curves(log.path) == {"loss": [(step, float(step)) for step in range(4)]}
    log.rewind(3)
    assert lines(log) == [{"step": step, "loss": step} for step in range(3)]
    said = f"{log.path}: 1 damaged line is passed over\n"
    assert capsys.readouterr().out == (said if ending else "")


@pytest.fixture
def fit(small_stage, latents, make_trainer, tmp_path):
    """`fit(name, steps, *callbacks)`: a training from its newest state, if it has one, and its lines."""
    options = {"val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}

    def run(name: str, steps: int, *callbacks: Callback, every: int = 4) -> list[dict]:
        log, state = MetricsLog(tmp_path / f"{name}.jsonl"), newest_state(tmp_path / name)
        if state is not None:
            log.rewind(int(state.parent.name.removeprefix("step=")))
        saving = SaveStates(folder=tmp_path / name, every=every)
        trainer = make_trainer(steps, saving, *callbacks, logger=[log], **options)
        trainer.fit(small_stage(), datamodule=latents, ckpt_path=state, weights_only=True)
        return lines(log)

    return run


@pytest.mark.parametrize("every", [3, 4])
def test_a_resumed_run_writes_the_same_curves(fit, tmp_path, every):
    whole = fit("whole", 10)
    assert [line["step"] for line in whole if "train/loss" in line] == list(range(10))
    assert [line["step"] for line in whole if "val/loss" in line] == [3, 7]
    fit("stopped", 10, every=every)
    for folder in sorted((tmp_path / "stopped").glob("step=*"))[1:]:
        (folder / "manifest.json").unlink()  # only the first state is whole: steps after it are taken again
    assert fit("stopped", 10, every=every) == whole


def test_a_validation_that_a_lost_process_owes_is_made_when_the_run_goes_on(fit, tmp_path):
    whole = fit("whole", 10)
    with pytest.raises(EndedError):
        fit("stopped", 10, InValidation(4))
    assert "val/loss" not in (tmp_path / "stopped.jsonl").read_text()
    assert fit("stopped", 10) == whole


def test_the_line_of_the_step_at_which_a_signal_stops_is_written(fit, tmp_path):
    whole = fit("whole", 10)
    with pytest.raises(StoppedBySignal, match="stopped at step 6 of 10"):
        fit("stopped", 10, Signalled(batch=5))
    assert lines(MetricsLog(tmp_path / "stopped.jsonl")) == whole[:7]  # six steps and one validation
    assert fit("stopped", 10) == whole


class Signalled(Callback):
    """Sends SIGTERM to this process when a batch begins."""

    def __init__(self, *, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)
