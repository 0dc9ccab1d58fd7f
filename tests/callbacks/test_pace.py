"""Facts about what a step is said to cost."""

import json

import pytest
from pytorch_lightning import Callback

from ldm.callbacks import pace
from ldm.callbacks.pace import Pace
from ldm.loggers.metrics_log import MetricsLog

BATCH, STEP, VALIDATION = 4, 0.5, 60.0  # samples, seconds


class Clock(Callback):
    """A time that only batches and validations take."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def on_train_batch_start(self, *_):
        self.now += STEP

    def on_validation_epoch_start(self, *_):
        self.now += VALIDATION

    def on_validation_end(self, *_):  # as drawing does, after Pace has been told of the end
        self.now += VALIDATION


@pytest.mark.parametrize("accumulated", [1, 2])
def test_pace_counts_the_samples_of_steps_and_leaves_validations_out(
    diffusion_stage, latents, make_trainer, tmp_path, monkeypatch, accumulated
):
    clock, log = Clock(), MetricsLog(tmp_path / "metrics.jsonl")
    monkeypatch.setattr(pace, "time", clock)
    options = {"val_check_interval": 1, "limit_val_batches": 1, "log_every_n_steps": 2}
    trainer = make_trainer(4, Pace(), clock, logger=[log], accumulate_grad_batches=accumulated, **options)
    trainer.fit(diffusion_stage(), datamodule=latents)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 3]
    assert [line["train/lr"] for line in lines] == pytest.approx([0.001, 0.002])
    assert [line["train/samples_per_second"] for line in lines] == pytest.approx([BATCH / STEP] * 2)
    assert all(0.1 < line["train/memory_gb"] < 100 for line in lines)
