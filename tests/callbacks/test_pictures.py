"""Facts about the pictures that a training leaves behind."""

from typing import ClassVar

import pytest
import torch
from PIL import Image

from ldm.callbacks.ema import EMA
from ldm.callbacks.generation_metrics import RoundTrip
from ldm.callbacks.pictures import Reconstructions, RetrievedPictures, SampleGrid
from ldm.codec import to_float, to_uint8
from ldm.io.pictures import to_picture
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.reconstruction import Reconstruction
from ldm.models.clip import CLIP, TextTransformer, VisionTransformer
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.clip import ContrastiveStage


def size(columns: int, rows: int) -> tuple[int, int]:
    """Of a sheet of 16 px pictures, doubled, 4 px apart."""
    return columns * 36 + 4, rows * 36 + 4


@pytest.fixture
def sheets(tmp_path):
    return tmp_path / "samples"


VALIDATED = {"val_check_interval": 2, "limit_val_batches": 1}


def test_a_sheet_of_samples_at_each_validation_and_its_path(
    diffusion_stage, latents, make_trainer, sheets, capsys
):
    grid = SampleGrid(prompts=["a cat", "a dog"], seeds=[0, 1, 2], folder=str(sheets))
    make_trainer(4, EMA(decay=0.9), grid, **VALIDATED).fit(diffusion_stage(), datamodule=latents)
    assert sorted(path.name for path in sheets.iterdir()) == ["step=000002.png", "step=000004.png"]
    assert f"samples: {sheets / 'step=000004.png'}\n" in capsys.readouterr().out
    with Image.open(sheets / "step=000004.png") as sheet:
        assert sheet.size == size(3, 2)


def test_a_sheet_of_reconstructions_at_each_validation(autoencoder, pictures, adamw, make_trainer, sheets):
    stage = AutoencoderStage(net=autoencoder, optimizer=adamw, decay=lambda step: 1.0, kl_weight=0.0)
    shown = Reconstructions(count=9, folder=str(sheets))  # of the four that are held out
    make_trainer(2, EMA(decay=0.9), shown, **VALIDATED).fit(stage, datamodule=pictures)
    with Image.open(sheets / "step=000002.png") as sheet:
        assert sheet.size == size(4, 2)


class MeanColours:
    """Three features of a picture."""

    dims: ClassVar[dict[str, int]] = {"colours": 3}
    identity = FeatureIdentity(name="colours", sha256="", size=16, resize="none")

    def __call__(self, images):
        return {"colours": images.float().mean(dim=(2, 3))}


def test_the_distance_of_reconstructions_is_logged(autoencoder, pictures, adamw, make_trainer):
    stage = AutoencoderStage(net=autoencoder, optimizer=adamw, decay=lambda step: 1.0, kl_weight=0.0)
    trainer = make_trainer(2, EMA(decay=0.9), RoundTrip(extractor=MeanColours()), **VALIDATED)
    trainer.fit(stage, datamodule=pictures)
    originals = pictures.val.images()
    with torch.no_grad():
        decoded = to_uint8(stage.averaged.reconstruct(to_float(originals)))
    judge = Reconstruction(extractor=MeanColours())
    judge.update(decoded, originals)
    assert trainer.callback_metrics["val/rfd_colours_few"] == pytest.approx(
        float(judge.compute()["rfd_colours"]), rel=1e-5
    )


def test_a_sheet_of_the_pictures_nearest_to_each_prompt(pictures, tokenizer, adamw, make_trainer, sheets):
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "embed_dim": 8}
    text = TextTransformer(vocab_size=640, context_length=16, **sizes)
    net = CLIP(text=text, image=VisionTransformer(image_size=16, patch_size=8, **sizes))
    stage = ContrastiveStage(net=net, tokenizer=tokenizer, optimizer=adamw, decay=lambda step: 1.0)
    own = [pictures.train.image(number) for number in range(5)]
    shown = RetrievedPictures(prompts=["a cat", "a dog"], count=9, gallery=5, folder=str(sheets))
    make_trainer(2, EMA(decay=0.9), shown, **VALIDATED).fit(stage, datamodule=pictures)
    with torch.no_grad():
        features = stage.averaged.encode_images(to_float(torch.stack(own)))
        query = stage.averaged.encode_texts(tokenizer.encode(["a dog"]))
    nearest = own[(features @ query[0]).argmax()]
    with Image.open(sheets / "step=000002.png") as sheet:
        assert sheet.size == size(5, 2)
        second_row = sheet.crop((4, 40, 36, 72)).resize((16, 16), Image.Resampling.NEAREST)
    assert second_row.tobytes() == to_picture(nearest).tobytes()


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
