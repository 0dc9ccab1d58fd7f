"""The same drawing by a bundle and by the folder of diffusers that it came from or became."""

import torch
from diffusers import StableDiffusionPipeline

from ldm.checkpoints.bundle import Bundle
from ldm.exchange.exporting import open_export, write_diffusers
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.randomness.noise import Mt19937Noise

FILES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
PROMPTS, SEEDS = ["grinning face", "a cat with a hat"], [3, 4]


def export(bundle, out, **options):
    return write_diffusers(open_export(Bundle.open(bundle), options), out, dtype=torch.float32)


def drawn_by_both(bundle, folder, *, output: str, guidance: float = 3.0, **options):
    """Latents or pixels by a bundle and by a diffusers folder, from the same seeds."""
    ours = open_latent_diffusion(Bundle.open(bundle), steps=10, scale=3.0, **options)
    ours = ours.with_options(generator=Mt19937Noise.name)
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        num_inference_steps=10,
        guidance_scale=guidance,
        output_type=output,
    )
    return (ours.latents if output == "latent" else ours)(PROMPTS, SEEDS), theirs.images


def largest_difference(bundle, folder, **options) -> int:
    """Of any pixel, in levels of 255."""
    ours, theirs = drawn_by_both(bundle, folder, output="pt", **options)
    return int(((theirs * 255).round().int() - ours.int()).abs().max())


def latents_apart(bundle, folder, **options) -> float:
    """Largest difference of any latent, as a share of the largest one."""
    ours, theirs = drawn_by_both(bundle, folder, output="latent", **options)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()
