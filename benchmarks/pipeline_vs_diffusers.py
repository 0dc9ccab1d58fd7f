"""A pipeline of random weights: from a folder to a PNG by ours and by diffusers, in turns.

    python -m benchmarks.pipeline_vs_diffusers [--shape sd] [--size 256] [--rounds 2] [--precision bfloat16]

The same weights, prompt and starting noise, DDIM with guidance 7.5. Each drawing is a process of its own: its
wall time with all imports, where that went, and the most memory that was resident (VmHWM: what is mapped from
files counts). Prints both, their ratios (below 1: ours takes less) and how far the pictures are apart.

The weights, 8.6 GB for sd, are made once in `--folder`, as diffusers saves them and as `ldm.export` imports
them. Drawings that are there already are not made again: remove drawings.jsonl for new ones. diffusers loads
by way of accelerate where that is installed, as it advises. Take the numbers on an idle machine.
`--shape toy` is for trying it out.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.problem_sizes import EVERY, add_shape
from benchmarks.processes import peak_memory
from benchmarks.random_pipeline import make_pipeline

PROMPT, NEGATIVE, SEED, SCALE = "a cat with a hat, sitting on a red chair", "", 7, 7.5
WITHIN, SHARE = 1, 0.999  # levels of 255 that nearly all pixels may be apart
PHASES = ("start", "load", "prompt", "first step", "other steps", "decoding", "end")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is to be drawn from which folder."""

    folder: Path
    shape: str  # problem size
    size: int  # pixels a side
    steps: int
    precision: str

    def picture(self, side: str) -> Path:
        """Where a side saves its picture."""
        return self.folder / f"{side}-{self.size}-{self.steps}-{self.precision}.png"

    def noise(self) -> Tensor:
        """The latents that both sides start from: what ours generates for SEED."""
        from ldm.randomness.noise import SeededNoise

        size = EVERY[self.shape]
        side = self.size * size.latents[1] // size.pixels
        return SeededNoise([SEED], (size.latents[0], side, side), device=torch.device("cpu")).generate()


@dataclass
class Clock:
    """The moments at which a drawing's networks are called, in seconds since the process began."""

    moments: dict[str, list[float]] = field(default_factory=dict)

    def mark(self, name: str) -> None:
        """Notes a moment under a name."""
        self.moments.setdefault(name, []).append(age())

    def watch(self, network: nn.Module, name: str) -> None:
        """Notes each call of a network."""
        network.register_forward_pre_hook(lambda *_: self.mark(name))

    def phases(self, *, calls: int) -> dict[str, float]:
        """Seconds of each of PHASES but the last, for a denoiser that is called so often a step."""
        (begun,), (loaded,), (decoded,), (done,) = (
            self.moments[name] for name in ("begun", "loaded", "decoder", "done")
        )
        steps = self.moments["denoiser"][::calls]
        second = steps[1] if len(steps) > 1 else decoded
        ends = [begun, loaded, steps[0], second, decoded, done]
        seconds = [end - start for start, end in zip([0.0, *ends[:-1]], ends, strict=True)]
        return dict(zip(PHASES[:-1], seconds, strict=True))


def age() -> float:
    """Seconds since this process began, by a clock that never goes back."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100  # a tick is 1/100 s on every Linux


def draw_ours(drawing: Drawing, clock: Clock) -> int:
    """Draws with our pipeline; returns how often a step calls the denoiser."""
    from ldm.checkpoints.bundle import Bundle
    from ldm.generators.diffusion_bundle import open_latent_diffusion
    from ldm.io.pictures import to_picture

    clock.mark("begun")
    bundle = Bundle.open(drawing.folder / "bundle")
    pipeline = open_latent_diffusion(bundle, precision=drawing.precision, steps=drawing.steps, scale=SCALE)
    pipeline = replace(pipeline, size=drawing.size).with_options(negative=NEGATIVE)
    clock.mark("loaded")
    clock.watch(pipeline.net, "denoiser")
    clock.watch(pipeline.codec.autoencoder.decoder, "decoder")
    (image,) = pipeline([PROMPT], [SEED])
    to_picture(image).save(drawing.picture("ours"))
    clock.mark("done")
    return len(clock.moments["denoiser"]) // drawing.steps


def draw_theirs(drawing: Drawing, clock: Clock) -> int:
    """Draws with diffusers' pipeline; returns how often a step calls the denoiser."""
    from diffusers import StableDiffusionPipeline

    clock.mark("begun")
    dtype = getattr(torch, drawing.precision)
    pipeline = StableDiffusionPipeline.from_pretrained(drawing.folder / "diffusers", dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    clock.mark("loaded")
    clock.watch(pipeline.unet, "denoiser")
    clock.watch(pipeline.vae.decoder, "decoder")
    (image,) = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        latents=drawing.noise().to(dtype),
        num_inference_steps=drawing.steps,
        guidance_scale=SCALE,
        height=drawing.size,
        width=drawing.size,
    ).images
    image.save(drawing.picture("theirs"))
    clock.mark("done")
    return len(clock.moments["denoiser"]) // drawing.steps


SIDES: dict[str, Callable[[Drawing, Clock], int]] = {"ours": draw_ours, "theirs": draw_theirs}


def draw(side: str, drawing: Drawing) -> dict[str, Any]:
    """One side's picture, in this process; seconds of its phases and its peak memory."""
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    clock = Clock()
    calls = SIDES[side](drawing, clock)
    return {"side": side, **clock.phases(calls=calls), "memory": peak_memory()}


def closeness(drawing: Drawing) -> dict[str, float]:
    """How far both pictures are apart, and how far one is from a flat one, in levels of 255."""
    ours, theirs = (
        np.asarray(Image.open(drawing.picture(side)).convert("RGB")).astype(int) for side in SIDES
    )
    apart = np.abs(ours - theirs).max(axis=2)
    return {
        "share within 1": float((apart <= WITHIN).mean()),
        "largest": float(apart.max()),
        "spread": float(theirs.std()),
    }


def run(arguments: Sequence[str]) -> tuple[str, float]:
    """A process of this script: the last line of what it prints, and its seconds."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.pipeline_vs_diffusers", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1] if done.stdout else "", time.perf_counter() - begun


def rounds(drawing: Drawing, *, count: int) -> list[dict[str, Any]]:
    """Drawings of both sides in turns, those that are on the disk already and those that are missing."""
    about = {name: value for name, value in asdict(drawing).items() if name != "folder"}
    shared = ["--folder", str(drawing.folder)]
    shared += [text for name, value in about.items() for text in (f"--{name}", str(value))]
    if not (drawing.folder / "bundle").is_dir():
        run(["--side", "make", *shared])
    file = drawing.folder / "drawings.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    done = [row for row in map(json.loads, lines) if about.items() <= row.items()]
    for number in range(count):
        for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
            if sum(row["side"] == side for row in done) > number:
                continue
            line, seconds = run(["--side", side, *shared])
            row = about | json.loads(line) | {"seconds": seconds}
            with file.open("a") as rows:
                print(json.dumps(row), file=rows)
            done.append(row)
    return done


def table(drawings: Sequence[dict[str, Any]]) -> str:
    """Medians of both sides and their ratios."""
    lines = [f"{'':14}{'ours':>10}{'diffusers':>12}{'ratio':>8}"]
    for name in (*PHASES, "seconds", "memory"):
        each = {side: [value_of(row, name) for row in drawings if row["side"] == side] for side in SIDES}
        ours, theirs = median(each["ours"]), median(each["theirs"])
        unit, scale = ("GB", 2**30) if name == "memory" else ("s", 1)
        lines.append(
            f"{name:14}{ours / scale:8.2f} {unit:2}{theirs / scale:9.2f} {unit:2}{ours / theirs:8.2f}"
        )
    return "\n".join(lines)


def value_of(row: dict[str, Any], name: str) -> float:
    """A number of a drawing; the end is what is left of its seconds."""
    if name == "end":
        return float(row["seconds"] - sum(row[phase] for phase in PHASES[:-1]))
    return float(row[name])


def main() -> int:
    """Prints the table; 1 if the pictures are not the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("/var/tmp/ldm-pipelines"))
    add_shape(parser, "sd")
    parser.add_argument("--size", type=int, help="pixels a side; by default those of the shape")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--side", choices=(*SIDES, "make"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    return max(compare(options, shape) for shape in options.shape)


def compare(options: argparse.Namespace, shape: str) -> int:
    """Prints the table of a shape, or generates one side's picture; 1 if the pictures are not the same."""
    folder = options.folder if options.side else options.folder / shape
    size = options.size or EVERY[shape].pixels
    drawing = Drawing(folder=folder, shape=shape, size=size, steps=options.steps, precision=options.precision)
    if options.side == "make":
        make_pipeline(folder, EVERY[shape])
        return 0
    if options.side:
        print(json.dumps(draw(options.side, drawing)))
        return 0
    print(f"torch {torch.__version__}, {shape}, {size} px, {options.steps} steps, {options.precision}")
    print(table(rounds(drawing, count=options.rounds)))
    apart = closeness(drawing)
    print(
        f"{apart['share within 1']:.3%} of the pixels within {WITHIN}/255, largest difference "
        f"{apart['largest']:.0f}; the picture's standard deviation is {apart['spread']:.0f}"
    )
    return int(options.precision == "float32" and apart["share within 1"] < SHARE)


if __name__ == "__main__":
    sys.exit(main())
