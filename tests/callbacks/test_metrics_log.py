"""Facts about `metrics.jsonl`."""

import json

import pytest

from ldm.callbacks.metrics_log import MetricsLog
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.store import newest_state


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


@pytest.mark.parametrize("every", [3, 4])
def test_a_resumed_run_writes_the_same_curves(diffusion_stage, latents, make_trainer, tmp_path, every):
    options = {"val_check_interval": 4, "limit_val_batches": 1, "log_every_n_steps": 1}

    def run(name: str, steps: int, state=None) -> MetricsLog:
        log = MetricsLog(tmp_path / f"{name}.jsonl")
        if state is not None:
            log.rewind(int(state.parent.name.removeprefix("step=")))
        saving = SaveStates(folder=tmp_path / name, every=every)
        trainer = make_trainer(steps, saving, logger=[log], **options)
        trainer.fit(diffusion_stage(), datamodule=latents, ckpt_path=state, weights_only=True)
        return log

    whole = run("whole", 10)
    assert [line["step"] for line in lines(whole) if "train/loss" in line] == list(range(10))
    assert [line["step"] for line in lines(whole) if "val/loss" in line] == [3, 7]
    run("stopped", 10)
    for folder in sorted((tmp_path / "stopped").glob("step=*"))[1:]:
        (folder / "manifest.json").unlink()  # only the first state is whole: steps after it are taken again
    stopped = run("stopped", 10, newest_state(tmp_path / "stopped"))
    assert lines(stopped) == lines(whole)
