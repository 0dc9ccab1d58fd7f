"""A training ends at its target, at the same step when it was interrupted, and its clocks only rise."""

import json

import pytest
import torch

from ldm.callbacks.pace import Target
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import newest_state, step_of
from ldm.io.curves import LOSS
from ldm.loggers.metrics_log import MetricsLog


@pytest.fixture
def train(diffusion_stage, latents, make_trainer, tmp_path):
    """`train(target, steps)`: trains to a target or a step; returns the callback and the validations."""

    def run(target, steps, *callbacks):
        log, callback = MetricsLog(tmp_path / "metrics.jsonl"), Target(loss=target)
        trainer = make_trainer(
            steps, callback, *callbacks, logger=[log], val_check_interval=1, limit_val_batches=1.0
        )
        if (state := newest_state(tmp_path)) is not None:
            log.rewind(step_of(state.parent))
        trainer.fit(diffusion_stage(), datamodule=latents, ckpt_path=state, weights_only=True)
        lines = map(json.loads, log.path.read_text().splitlines())
        return callback, [line for line in lines if LOSS in line]

    return run


def test_a_training_ends_at_the_first_validation_below_its_target(train):
    callback, lines = train(1e-9, 4)
    losses = [line[LOSS] for line in lines]
    assert (len(losses), callback.reached) == (4, False)
    first = next(number for number, loss in enumerate(losses) if loss <= losses[1])
    callback, lines = train(losses[1], 4)
    assert callback.reached
    assert [line[LOSS] for line in lines[4:]] == losses[: first + 1]
    assert lines[-1]["val/seconds"] > 0


def test_the_clocks_continue_where_a_resumed_training_was_saved(train, tmp_path):
    train(1e-9, 2, SaveStates(folder=str(tmp_path), every=1))
    _, lines = train(1e-9, 4, SaveStates(folder=str(tmp_path), every=1))
    for name in ("val/seconds", "val/cpu_seconds"):
        read = [line[name] for line in lines]
        assert read == sorted(read)
        saved = torch.load(newest_state(tmp_path), weights_only=True)["callbacks"]["Target"][name]
        assert read[1] < saved


def test_a_training_that_began_without_a_target_logs_no_seconds(train, tmp_path):
    train(None, 2, SaveStates(folder=str(tmp_path), every=1))
    callback, lines = train(1e9, 4, SaveStates(folder=str(tmp_path), every=1))
    assert callback.reached
    assert not any("val/seconds" in line for line in lines)


def test_without_a_target_nothing_is_logged_and_all_steps_are_taken(train):
    callback, lines = train(None, 2)
    assert not callback.reached
    assert not any("val/seconds" in line for line in lines)


@pytest.mark.parametrize("loss", [0, -1.0, float("nan"), "0.3", True])
def test_a_target_that_is_no_loss_is_refused(loss):
    with pytest.raises(ValueError, match="must be a number above 0"):
        Target(loss=loss)
