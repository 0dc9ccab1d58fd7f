"""The same sample by a bundle and by the folder of diffusers that it came from or became."""

import torch
from diffusers import StableDiffusionPipeline

from ldm.checkpoints.bundle import Bundle
from ldm.construct import construct
from ldm.exchange.exporting import open_export, write_diffusers
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.randomness.noise import Mt19937Noise

FILES = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
PROMPTS, SEEDS, STEPS = ["grinning face", "a cat with a hat"], [3, 4], 5


def export(bundle, out, **options):
    return write_diffusers(open_export(Bundle.open(bundle), options), out, dtype=torch.float32)


def outline(spec) -> dict[str, torch.Tensor]:
    """The weights of a network on the meta device."""
    with torch.device("meta"):
        return construct(spec).state_dict()


def sampled(bundle, *folders, output: str, guidance: float = 3.0, **options):
    """Latents or pixels by a bundle, and by each of the diffusers folders, from the same seeds."""
    ours = open_latent_diffusion(Bundle.open(bundle), steps=STEPS, scale=3.0, **options)
    ours = ours.with_options(generator=Mt19937Noise.name)
    theirs = []
    for folder in folders:
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        drawn = pipeline(
            PROMPTS,
            generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            output_type=output,
        )
        theirs.append(drawn.images)
    return (ours.latents if output == "latent" else ours)(PROMPTS, SEEDS), theirs


def largest_difference(bundle, *folders, **options) -> int:
    """Of any pixel of any folder, in levels of 255."""
    ours, theirs = sampled(bundle, *folders, output="pt", **options)
    return max(int(((each * 255).round().int() - ours.int()).abs().max()) for each in theirs)


def latents_apart(bundle, *folders, **options) -> float:
    """Largest difference of any latent of any folder, as a share of the largest one."""
    ours, theirs = sampled(bundle, *folders, output="latent", **options)
    return max(((ours - each).abs().max() / each.abs().max()).item() for each in theirs)
