"""Stable Diffusion 1.5's size, random weights: from a folder to a PNG by ours and by diffusers, in turns.

    python -m benchmarks.pipeline_vs_diffusers [--size 256] [--steps 5] [--rounds 2] [--precision bfloat16]

The same weights, prompt and starting noise, DDIM with guidance 7.5. Each drawing is a process of its own: its
wall time with all imports, where that went, and the most memory that was resident (VmHWM: what is mapped from
files counts). Prints both, their ratios (below 1: ours takes less) and how far the pictures are apart.

The weights, 8.6 GB, are made once in `--folder`, as diffusers saves them and as `ldm.export` imports them.
Drawings that are there already are not made again: remove drawings.jsonl for new ones. diffusers loads by way
of accelerate where that is installed, as it advises. Take the numbers on an idle machine. `--tiny` is for
trying it out.
"""

import argparse
import json
import logging
import shutil
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

from benchmarks.processes import peak_memory

PROMPT, NEGATIVE, SEED, SCALE = "a cat with a hat, sitting on a red chair", "", 7, 7.5
END = 49_407
CONTRAST = 8.0  # of the last layer
WITHIN, SHARE = 1, 0.999  # levels of 255 that nearly all pixels may be apart
PHASES = ("start", "load", "prompt", "first step", "other steps", "decoding", "end")

Config = dict[str, Any]
SD15: dict[str, Config] = {
    "unet": {"cross_attention_dim": 768, "sample_size": 64},
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
    },
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}
TINY: dict[str, Config] = {
    "unet": {
        "cross_attention_dim": 32,
        "sample_size": 64,
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
    },
    "vae": SD15["vae"]
    | {"block_out_channels": [16, 16, 32, 32], "norm_num_groups": 8, "layers_per_block": 1},
    "text_encoder": {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "timestep_spacing": "trailing",
}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What is to be drawn from which folder."""

    folder: Path
    size: int
    steps: int
    precision: str

    def picture(self, side: str) -> Path:
        """Where a side saves its picture."""
        return self.folder / f"{side}-{self.size}-{self.steps}-{self.precision}.png"

    def noise(self) -> Tensor:
        """The latents that both sides start from: what ours generates for SEED."""
        from ldm.randomness.noise import SeededNoise

        return SeededNoise([SEED], (4, self.size // 8, self.size // 8), device=torch.device("cpu")).generate()


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


def make(folder: Path, configs: dict[str, Config]) -> None:
    """A random pipeline as diffusers saves it, and the bundle that it is imported as."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from ldm.exchange.folder import import_pipeline, write_vocabulary
    from ldm.exchange.weights import Source
    from ldm.tokenizers import clip_bpe

    for left in ("vocabulary", "diffusers"):  # by a run that was ended
        shutil.rmtree(folder / left, ignore_errors=True)
    torch.manual_seed(0)
    write_vocabulary(clip_bpe(pad_id=END), folder / "vocabulary")
    tokens = {"bos_token_id": END - 1, "eos_token_id": END, "pad_token_id": END}
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(**configs["vae"]),
        text_encoder=CLIPTextModel(CLIPTextConfig(**configs["text_encoder"], **tokens)),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "vocabulary"),
        unet=diffusers.UNet2DConditionModel(**configs["unet"]),
        scheduler=diffusers.DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.vae.decoder.conv_out.weight.data *= CONTRAST  # random weights draw in grey
    pipeline.save_pretrained(folder / "diffusers")
    del pipeline
    source = Source(path=folder / "diffusers", name="diffusers")
    imported = import_pipeline(source.path, text_state="last")
    imported.write(folder / "bundle", source, dtype=torch.float32)


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


def rounds(drawing: Drawing, *, count: int, tiny: bool) -> list[dict[str, Any]]:
    """Drawings of both sides in turns, those that are on the disk already and those that are missing."""
    shared = ["--folder", str(drawing.folder), *(["--tiny"] if tiny else [])]
    if not (drawing.folder / "bundle").is_dir():
        run(["--side", "make", *shared])
    about = {name: value for name, value in asdict(drawing).items() if name != "folder"}
    shared += [text for name, value in about.items() for text in (f"--{name}", str(value))]
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
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tiny", action="store_true", help="networks of a few thousand weights")
    parser.add_argument("--side", choices=(*SIDES, "make"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / "tiny" if options.tiny and not options.side else options.folder
    drawing = Drawing(folder=folder, size=options.size, steps=options.steps, precision=options.precision)
    if options.side == "make":
        make(folder, TINY if options.tiny else SD15)
        return 0
    if options.side:
        print(json.dumps(draw(options.side, drawing)))
        return 0
    print(f"torch {torch.__version__}, {options.size} px, {options.steps} steps, {options.precision}")
    print(table(rounds(drawing, count=options.rounds, tiny=options.tiny)))
    apart = closeness(drawing)
    print(
        f"{apart['share within 1']:.3%} of the pixels within {WITHIN}/255, largest difference "
        f"{apart['largest']:.0f}; the picture's standard deviation is {apart['spread']:.0f}"
    )
    return int(options.precision == "float32" and apart["share within 1"] < SHARE)


if __name__ == "__main__":
    sys.exit(main())
