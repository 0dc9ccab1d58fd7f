"""A bundle and its export by `ldm.export to=diffusers`: samples of both from the same prompts and noise.

    python -m benchmarks.exported_pictures [--bundle shipped] [--prompts list.txt] [--seeds 4] [--steps 25]

Prints how many values of all pictures are equal, and the largest difference of any. One may come of rounding:
a value that lies halfway between two levels ends on either side of it.
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.bundle import Bundle
from ldm.exchange.exporting import Export, open_export, write_diffusers
from ldm.generators.diffusion_bundle import codec_of, open_latent_diffusion
from ldm.randomness.noise import Mt19937Noise
from ldm.sampling.jobs import read_list

PROMPTS = Path("experiments/emoji/prompts.txt")
LIMIT = 1  # levels of 255


def by_ours(bundle: Bundle, export: Export, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The bundle's own pictures: uint8, b 3 h w."""
    pipeline = open_latent_diffusion(bundle, steps=export.architecture.sampler["steps"])
    return pipeline.with_options(generator=Mt19937Noise.name)(prompts, seeds)


def by_theirs(folder: Path, export: Export, prompts: Sequence[str], noise: Tensor) -> Tensor:
    """Those of the exported folder in diffusers, from the same noise: uint8, b 3 h w."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    sampled = pipeline(
        list(prompts),
        latents=noise,
        num_inference_steps=export.architecture.sampler["steps"],
        guidance_scale=export.guidance,
        output_type="pt",
    )
    return (sampled.images * 255).round().to(torch.uint8)


def compared(ours: Tensor, theirs: Tensor) -> tuple[float, int]:
    """The share of equal values, and the largest difference in levels of 255."""
    apart = (ours.int() - theirs.int()).abs()
    return (apart == 0).double().mean().item(), int(apart.max())


def main() -> int:
    """Prints the comparison; 1 if a difference is above LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="shipped")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="a list as ldm.sample reads it")
    parser.add_argument("--seeds", type=int, default=4, help="pictures of each prompt, from seed 0 on")
    parser.add_argument("--steps", type=int, help="by default the bundle's")
    options = parser.parse_args()
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    bundle = Bundle.open(options.bundle)
    export = open_export(bundle, {"steps": options.steps})
    listed = [line.fields["prompt"] for line in read_list(options.prompts)]
    prompts = [prompt for prompt in listed for _ in range(options.seeds)]
    seeds = list(range(options.seeds)) * len(listed)
    ours = by_ours(bundle, export, prompts, seeds)
    shape = codec_of(bundle, bundle).latent_shape(bundle.entry("size"))
    noise = Mt19937Noise(seeds, shape, device=torch.device("cpu")).generate()
    with tempfile.TemporaryDirectory() as place:
        folder = write_diffusers(export, Path(place) / "exported", dtype=torch.float32)
        theirs = by_theirs(folder, export, prompts, noise)
    equal, largest = compared(ours, theirs)
    told, steps = export.architecture, export.architecture.sampler["steps"]
    print(f"{len(prompts)} pictures of {told.size} px, {steps} steps, guidance {export.guidance:g}")
    print(
        f"{equal:.3%} of the values equal, largest difference {largest} of 255; "
        f"their standard deviation is {ours.float().std():.0f}"
    )
    return int(largest > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
