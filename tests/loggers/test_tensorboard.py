"""Facts about what TensorBoard gets of a training."""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.callbacks.pictures import SampleGrid
from ldm.loggers.metrics_log import MetricsLog
from ldm.loggers.tensorboard_log import tensorboard_logger


@pytest.fixture
def events(tmp_path):
    """`events()`: what is read back from the run directory."""

    def read() -> EventAccumulator:
        found = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
        return found.Reload()

    return read


def test_what_is_read_back_is_what_was_logged(diffusion_stage, latents, make_trainer, tmp_path, events):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"steps": 4}))
    log, logger = MetricsLog(tmp_path / "metrics.jsonl"), tensorboard_logger(folder=str(tmp_path))
    grid = SampleGrid(prompts=["a cat"], seeds=[0, 1], folder=str(tmp_path / "samples"))
    options = {"val_check_interval": 2, "limit_val_batches": 1, "log_every_n_steps": 1}
    make_trainer(4, grid, logger=[log, logger], **options).fit(diffusion_stage(), datamodule=latents)
    logger.end()

    found = events()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    for name in ("train/loss", "val/loss", "val/loss_bin3"):
        logged = [(line["step"], line[name]) for line in lines if name in line]
        assert [each.step for each in found.Scalars(name)] == [step for step, _ in logged]
        assert [each.value for each in found.Scalars(name)] == pytest.approx([value for _, value in logged])
    assert [each.step for each in found.Images("samples")] == [2, 4]
    with Image.open(tmp_path / "samples" / "step=000004.png") as sheet:
        kept = Image.open(io.BytesIO(found.Images("samples")[-1].encoded_image_string))
        assert np.array_equal(np.asarray(kept), np.asarray(sheet.convert("RGB")))
    (text,) = found.Tensors("config/text_summary")
    assert b"steps: 4" in text.tensor_proto.string_val[0]


@pytest.mark.parametrize(
    ("first", "kept"),
    [({"train/loss": 9.0}, [0, 1, 2]), ({"val/loss": 9.0}, [0, 1, 2])],
    ids=["training", "a validation at the state's own step"],
)
def test_a_resumed_run_replaces_the_steps_that_it_takes_again(tmp_path, events, first, kept):
    earlier = tensorboard_logger(folder=str(tmp_path))
    for step in range(6):
        earlier.log_metrics({"train/loss": float(step)}, step=step)
    earlier.end()
    later = tensorboard_logger(folder=str(tmp_path))
    later.log_metrics(first, step=3 if "train/loss" in first else 2)
    later.end()
    found = [(each.step, each.value) for each in events().Scalars("train/loss")]
    assert [step for step, value in found if value != 9.0] == kept
