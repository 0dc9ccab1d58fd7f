"""Measures of drawings, taken while a network trains."""

import pytest
import torch

from ldm.callbacks.generation_metrics import GenerationMetrics
from ldm.metrics.features import FeatureIdentity
from ldm.metrics.nearest import PictureRecall


class Pixels(torch.nn.Module):
    """Features that are the pixels themselves."""

    identity = FeatureIdentity(name="pixels", sha256="0" * 64, size=16, resize="none")

    def forward(self, images):
        return images.flatten(1).float()


@pytest.fixture
def callback() -> GenerationMetrics:
    metrics = {"nearest": PictureRecall(features="pixels", ks=(1, 5))}
    return GenerationMetrics(extractor=Pixels(), metrics=metrics, captions=6, batch_size=4)


def test_recall_is_logged_at_each_validation_and_is_the_same_for_the_same_weights(
    callback, diffusion_stage, latents, make_trainer
):
    trainer = make_trainer(1, callback, limit_val_batches=1.0)
    first = trainer.validate(diffusion_stage(), datamodule=latents, verbose=False)[0]
    again = trainer.validate(diffusion_stage(), datamodule=latents, verbose=False)[0]
    assert {"val/r1_pixels", "val/r5_pixels"} <= first.keys()
    assert 0 <= first["val/r1_pixels"] <= first["val/r5_pixels"] <= 1
    assert first == again
