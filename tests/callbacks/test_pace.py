"""Facts about what a step is said to cost."""

import json

import pytest

from ldm.callbacks.pace import Pace
from ldm.loggers.metrics_log import MetricsLog

BATCH, STEP = 4, 0.5  # samples, seconds


@pytest.mark.parametrize("accumulated", [1, 2])
def test_pace_counts_the_samples_of_steps_and_leaves_validations_out(
    diffusion_stage, latents, make_trainer, tmp_path, clock, accumulated
):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    options = {"val_check_interval": 1, "limit_val_batches": 1, "log_every_n_steps": 2}
    callbacks = [Pace(), clock(step=STEP, validation=120.0)]
    trainer = make_trainer(4, *callbacks, logger=[log], accumulate_grad_batches=accumulated, **options)
    trainer.fit(diffusion_stage(), datamodule=latents)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    lines = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in lines] == [1, 3]
    assert [line["train/lr"] for line in lines] == pytest.approx([0.001, 0.002])
    assert [line["train/samples_per_second"] for line in lines] == pytest.approx([BATCH / STEP] * 2)
    assert all(0.1 < line["train/memory_gb"] < 100 for line in lines)
