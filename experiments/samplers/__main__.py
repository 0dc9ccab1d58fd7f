"""Pictures and numbers of every sampler against its calls of the network: `python -m experiments.samplers`.

Each yaml of conf/sampler samples the same prompts and seeds with the shipped model, with as many steps as 4,
8, 16 and 32 calls of the guided denoiser allow. Writes README.md's table, sheet.png and curve.png here.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from experiments.samplers.figures import draw_curves, draw_sheet
from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.commands.answers import answer_errors
from ldm.config import CONF, build
from ldm.diffusion import Schedule
from ldm.diffusion.samplers import Sampling
from ldm.evaluation.bundle import own_judges
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.generators.latent_diffusion import TextToImage
from ldm.io.writing import write
from ldm.metrics.features import OWN_CLIP
from ldm.metrics.networks import EfficientNetLite0
from ldm.metrics.retrieval import pair_cosines
from ldm.randomness.noise import Mt19937Noise

FOLDER = Path(__file__).parent
PROMPTS = ["red apple", "grinning face", "blue circle", "dog face"]
SEEDS = [0, 1, 2, 3]
CALLS = [4, 8, 16, 32]
REFERENCE_STEPS = 250
MARK = "<!-- table: python -m experiments.samplers -->"


class Row(NamedTuple):
    """What a sampler generated with a number of calls."""

    sampler: str
    calls: int
    steps: int
    images: Tensor
    distance: float  # mean, in EfficientNet-lite0 features, to the reference's picture of the same seed
    clip: float  # mean cosine of picture and prompt in the bundle's own CLIP


def main() -> None:
    """Samples, measures and writes."""
    bundle = Bundle.open("shipped")
    # the noise of the table's pictures
    pipeline = open_latent_diffusion(bundle).with_options(generator=Mt19937Noise.name)
    rows = list(measured(bundle, pipeline))
    draw_sheet([(row.sampler, row.calls, row.images) for row in rows], FOLDER / "sheet.png")
    draw_curves([(row.sampler, row.calls, row.distance, row.clip) for row in rows[1:]], FOLDER / "curve.png")
    page = FOLDER / "README.md"
    words, _, _ = page.read_text(encoding="utf-8").partition(MARK)
    write(page, f"{words}{MARK}\n\n{table(rows)}\n")
    print(f"{page}: {len(rows) - 1} rows")


def measured(bundle: Bundle, pipeline: TextToImage) -> Iterator[Row]:
    """The reference's row, then one for each sampler and number of calls."""
    features, judge = EfficientNetLite0(), own_judges(bundle, device=torch.device("cpu"))
    texts = judge.texts[f"{OWN_CLIP}_text"](PROMPTS)
    jobs = [("reference", replace(sampler("ddim"), steps=REFERENCE_STEPS), REFERENCE_STEPS)]
    for name in sorted(path.stem for path in (CONF / "sampler").glob("*.yaml")):
        for calls in CALLS:
            sampling = sampler(name)
            steps = steps_within(sampling, pipeline.process.schedule, calls)
            jobs.append((name, replace(sampling, steps=steps), calls))
    reference: Tensor | None = None
    for name, sampling, calls in tqdm(jobs, unit="run", disable=None):
        images = replace(pipeline, sampling=sampling)(PROMPTS, SEEDS)
        (seen,) = features(images).values()
        reference = seen if reference is None else reference
        (pictures,) = judge.pictures[OWN_CLIP](images).values()
        yield Row(
            sampler=name,
            calls=calls,
            steps=sampling.steps,
            images=images,
            distance=(seen - reference).norm(dim=1).mean().item(),
            clip=pair_cosines(pictures, texts).mean().item(),
        )


def sampler(name: str) -> Sampling:
    """The sampler of conf/sampler/<name>.yaml."""
    return build(OmegaConf.to_container(OmegaConf.load(CONF / "sampler" / f"{name}.yaml")))


def steps_within(sampling: Sampling, schedule: Schedule, calls: int) -> int:
    """The most steps that take at most so many calls of the denoiser, counted on a picture of one number."""
    for steps in range(calls, 0, -1):
        count = 0

        def _denoise(x: Tensor, t: Tensor) -> Tensor:
            nonlocal count
            count += 1
            return torch.zeros_like(x)

        start = torch.zeros(1, 1, dtype=torch.float64)
        replace(sampling, steps=steps)(_denoise, schedule, start, noise=torch.zeros_like)
        if count <= calls:
            return steps
    raise UserError(f"no step of this sampler takes at most {calls} calls: allow more")


def table(rows: list[Row]) -> str:
    """One line a sampler: distance and score for each number of calls."""
    reference, *rows = rows
    head = ["sampler", *(f"{calls} calls" for calls in CALLS)]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for name in dict.fromkeys(row.sampler for row in rows):
        cells = [f"{row.distance:.2f} / {row.clip:.3f}" for row in rows if row.sampler == name]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"The reference itself: 0 / {reference.clip:.3f}."])


if __name__ == "__main__":
    # --help must not run an experiment that overwrites its page
    ArgumentParser(description=__doc__).parse_args()
    answer_errors(main)
