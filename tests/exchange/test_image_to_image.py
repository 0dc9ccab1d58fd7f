"""Pictures drawn from pictures are those of diffusers, latent by latent, whole or within a mask."""

import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from torch.testing import assert_close

from ldm.checkpoints.bundle import Bundle
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.generators.generator import Source
from ldm.randomness.noise import Mt19937Noise

PROMPTS, SEEDS, SCALE, STEPS = ["grinning face", "a cat with a hat"], [3, 4], 3.0, 5
IMAGES = torch.randint(256, (2, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
REDRAWN = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
REDRAWN[:, :, :, 6:] = True  # an edge between latents: 2 pixels are one


@pytest.fixture(scope="module")
def ours(imported):
    pipeline = open_latent_diffusion(Bundle.open(imported), steps=STEPS, scale=SCALE)
    return pipeline.with_options(generator=Mt19937Noise.name)


def theirs(pipeline_class, saved, ours, *, strength, **options):
    pipeline = pipeline_class.from_pretrained(saved)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS,
        image=ours.codec.encode_images(IMAGES).mean,  # their own draws from the posterior
        strength=strength,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        output_type="latent",
        **options,
    ).images


@pytest.mark.parametrize("strength", [1.0, 0.6, 0.2])
def test_image_to_image_is_that_of_diffusers(ours, saved, strength):
    expected = theirs(StableDiffusionImg2ImgPipeline, saved, ours, strength=strength)
    found = ours.latents(PROMPTS, SEEDS, source=Source(images=IMAGES, strength=strength))
    assert_close(found, expected, atol=1e-4, rtol=0)
    assert (found - ours.latents(PROMPTS, SEEDS)).abs().max() > 0.1


def test_inpainting_is_that_of_diffusers_which_replaces_x_after_each_step(ours, saved):
    strength = 0.8
    expected = theirs(
        StableDiffusionInpaintPipeline,
        saved,
        ours,
        strength=strength,
        mask_image=REDRAWN.float(),
        masked_image_latents=torch.zeros(
            2, 4, 8, 8
        ),  # for networks that see the mask, which this one doesn't
        height=16,
        width=16,
    )
    source = Source(images=IMAGES, strength=strength, redrawn=REDRAWN)
    found = ours.latents(PROMPTS, SEEDS, source=source)
    assert_close(found, expected, atol=1e-4, rtol=0)
    everywhere = ours.latents(PROMPTS, SEEDS, source=Source(images=IMAGES, strength=strength))
    assert (found - everywhere).abs().max() > 0.1
