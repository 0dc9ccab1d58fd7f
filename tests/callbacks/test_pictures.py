"""Facts about the pictures that a training leaves behind."""

import pytest
from PIL import Image

from ldm.callbacks.ema import EMA
from ldm.callbacks.reconstructions import Reconstructions
from ldm.callbacks.sample_grid import SampleGrid
from ldm.stages.autoencoder import AutoencoderStage


def size(columns: int, rows: int) -> tuple[int, int]:
    """Of a sheet of 16 px pictures, doubled, 4 px apart."""
    return columns * 36 + 4, rows * 36 + 4


@pytest.fixture
def sheets(tmp_path):
    return tmp_path / "samples"


VALIDATED = {"val_check_interval": 2, "limit_val_batches": 1}


def test_a_sheet_of_drawings_at_each_validation(diffusion_stage, latents, make_trainer, sheets):
    grid = SampleGrid(prompts=["a cat", "a dog"], seeds=[0, 1, 2], folder=str(sheets))
    make_trainer(4, EMA(decay=0.9), grid, **VALIDATED).fit(diffusion_stage(), datamodule=latents)
    assert sorted(path.name for path in sheets.iterdir()) == ["step=000002.png", "step=000004.png"]
    with Image.open(sheets / "step=000004.png") as sheet:
        assert sheet.size == size(3, 2)


def test_a_sheet_of_reconstructions_at_each_validation(autoencoder, pictures, adamw, make_trainer, sheets):
    stage = AutoencoderStage(net=autoencoder, optimizer=adamw, decay=lambda step: 1.0, kl_weight=0.0)
    shown = Reconstructions(count=9, folder=str(sheets))  # of the four that are held out
    make_trainer(2, EMA(decay=0.9), shown, **VALIDATED).fit(stage, datamodule=pictures)
    with Image.open(sheets / "step=000002.png") as sheet:
        assert sheet.size == size(4, 2)


def test_drawing_does_not_change_the_training(diffusion_stage, latents, make_trainer, sheets):
    plain, watched = diffusion_stage(), diffusion_stage()
    make_trainer(4, **VALIDATED).fit(plain, datamodule=latents)
    grid = SampleGrid(prompts=["a cat"], seeds=[0], folder=str(sheets))
    make_trainer(4, grid, **VALIDATED).fit(watched, datamodule=latents)
    ours, theirs = plain.state_dict(), watched.state_dict()
    assert all(ours[key].equal(theirs[key]) for key in ours)


def test_pictures_that_are_not_finite_leave_no_sheet_and_end_no_training(
    diffusion_stage, latents, make_trainer, sheets, capsys
):
    stage = diffusion_stage()
    stage.guidance = lambda cond, uncond: lambda x, t: cond(x, t) * float("nan")
    grid = SampleGrid(prompts=["a cat"], seeds=[0], folder=str(sheets))
    trainer = make_trainer(4, grid, **VALIDATED)
    trainer.fit(stage, datamodule=latents)
    assert trainer.global_step == 4
    assert capsys.readouterr().out.count("at step 2 the pictures are NaN or infinite") == 1
    assert not sheets.exists()
