"""Facts about logging beside a training: it never waits, and never falls with what it logs to."""

import threading
import time

import pytest

from ldm.loggers import background
from ldm.loggers.background import BackgroundLogger, end_all
from ldm.loggers.metrics_log import MetricsLog


class Kept:
    """A recorder that keeps what it gets; it may fail at its n-th entry, or wait until it is let go."""

    def __init__(self, *, fails_at=None, gate=None):
        self.entries, self.fails_at, self.gate = [], fails_at, gate

    def metrics(self, values, step):
        if self.gate is not None:
            self.gate.wait()
        if len(self.entries) + 1 == self.fails_at:
            raise OSError("no space left")
        self.entries.append((step, values))

    def bundle(self, path):
        self.entries.append(path)

    def close(self, *, failed):
        self.entries.append("failed" if failed else "ended")


def test_all_arrives_in_its_order(tmp_path):
    kept = Kept()
    logger = BackgroundLogger(lambda: kept, title="it", patience=10.0)
    for step in range(100):
        logger.log_metrics({"loss": float(step), "epoch": 0}, step=step)
    logger.finalize("success")
    end_all([logger, MetricsLog(tmp_path / "x")], tmp_path)
    assert kept.entries == [*((step, {"loss": float(step)}) for step in range(100)), tmp_path, "ended"]


def test_a_recorder_that_hangs_costs_a_log_nothing_and_the_end_its_patience(monkeypatch, capsys):
    monkeypatch.setattr(background, "ROOM", 1000)
    gate = threading.Event()
    logger = BackgroundLogger(lambda: Kept(gate=gate), title="it", patience=0.2, give_up=gate.set)
    began = time.process_time()
    for step in range(5000):
        logger.log_metrics({"loss": 0.0}, step=step)
    assert (time.process_time() - began) / 5000 < 1e-4  # a hundredth of a step of 10 ms
    logger.end()
    assert gate.is_set()
    told = capsys.readouterr().out
    assert "it has not finished within 0.2 s and is abandoned" in told
    assert "too slow for 4000 entries" in told or "too slow for 3999 entries" in told  # one is being written


@pytest.mark.parametrize("fails_at", [1, 3])
def test_a_recorder_that_fails_is_given_up_and_the_training_goes_on(
    diffusion_stage, latents, make_trainer, tmp_path, capsys, fails_at
):
    kept, log = Kept(fails_at=fails_at), MetricsLog(tmp_path / "metrics.jsonl")
    logger = BackgroundLogger(lambda: kept, title="it", patience=10.0)
    trainer = make_trainer(4, logger=[logger, log], log_every_n_steps=1)
    trainer.fit(diffusion_stage(), datamodule=latents)
    logger.end()
    assert trainer.global_step == 4
    assert len(log.path.read_text().splitlines()) == 4
    assert len(kept.entries) == fails_at - 1
    assert "it has failed (OSError: no space left)" in capsys.readouterr().out


def test_one_that_can_not_be_opened_is_given_up(capsys):
    def refuse():
        raise ValueError("not here")

    logger = BackgroundLogger(refuse, title="it", patience=10.0)
    logger.end()
    assert "it has failed (ValueError: not here)" in capsys.readouterr().out


def test_a_failed_training_says_so(diffusion_stage, latents, make_trainer):
    kept = Kept()
    logger = BackgroundLogger(lambda: kept, title="it", patience=10.0)
    stage = diffusion_stage()
    stage.training_step = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        make_trainer(2, logger=[logger]).fit(stage, datamodule=latents)
    assert kept.entries == ["failed"]
