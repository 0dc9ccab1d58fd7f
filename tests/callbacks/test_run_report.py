"""Facts about the page that a training leaves."""

import json

import pytest
import yaml
from PIL import Image

from ldm.callbacks.run_report import RunReport, write_run_report
from ldm.evaluation.figures import literature_beside
from ldm.loggers.metrics_log import MetricsLog


@pytest.fixture
def run(tmp_path):
    """A run directory with two sheets of pictures."""
    config = {"name": "tiny", "summary": "a short one", "data": {"root": "/secret/birds"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    record = {
        "commit": "0123456789abcdef",
        "dirty": True,
        "started": "2026-11-25T03:15:00+00:00",
        "host": "secret",
        "torch": "2.14.1",
        "config_hash": "f" * 64,
        "command": "python -m ldm.train data.root=/secret/birds",
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    (tmp_path / "samples").mkdir()
    for step in (900, 1000):
        Image.new("RGB", (8, 8)).save(tmp_path / "samples" / f"step={step}.png")
    return tmp_path


def log_of(run, *lines):
    log = MetricsLog(run / "metrics.jsonl")
    for step, values in lines:
        log.log_metrics(values, step=step)


def test_the_page_of_a_training(diffusion_stage, latents, make_trainer, run):
    log = MetricsLog(run / "metrics.jsonl")
    trainer = make_trainer(3, RunReport(folder=str(run)), logger=[log], log_every_n_steps=1)
    trainer.fit(diffusion_stage(), datamodule=latents)
    page = (run / "report.md").read_text()
    losses = [json.loads(line)["train/loss"] for line in log.path.read_text().splitlines()]
    shown = [f"{value:.4g}" for value in (losses[0], losses[-1], min(losses), max(losses))]
    assert f"| train/loss | {' | '.join(shown)} | 2 |" in page
    assert "at commit 0123456789ab with changes" in page
    assert "# tiny\n\na short one\n" in page
    assert "(samples/step=1000.png)" in page
    assert "python -m ldm.train data.root=.../birds\n" in page
    assert "root: '.../birds'\n" in page
    assert "secret" not in page  # neither folders nor the machine's name: the page is shared
    with Image.open(run / "curves.png") as figure:
        assert figure.width > 200


def test_numbers_of_the_literature_are_lines_and_a_table(run):
    printed = {"literature/fid/A": 10.0, "literature/fid/B": 27.5, "literature/is_mean/A": 20.0}
    log_of(run, (9, {"val/fid": 99.0, "val/loss": 1.0} | printed), (19, {"val/fid": 88.0} | printed))
    page = write_run_report(run).read_text()
    assert "| **this run, last** | 88 |\n| A | 10 |\n| B | 27.5 |" in page
    assert "| literature" not in page
    curves = {"val/fid": [(9, 99.0)], **{name: [(9, value)] for name, value in printed.items()}}
    assert literature_beside(curves, "val/fid") == {"A": 10.0, "B": 27.5}
    assert literature_beside(curves, "val/fd_pixels") == {}


def test_a_page_that_can_not_be_written_warns(diffusion_stage, latents, make_trainer, tmp_path):
    log_of(tmp_path, (0, {"loss": 1.0}))
    (tmp_path / "report.md").mkdir()
    trainer = make_trainer(1, RunReport(folder=str(tmp_path)))
    with pytest.warns(UserWarning, match=r"report.md was not written \(IsADirectoryError"):
        trainer.fit(diffusion_stage(), datamodule=latents)
    assert trainer.global_step == 1


def test_nothing_logged_is_said(run):
    (run / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match="no curves to draw"):
        write_run_report(run)
