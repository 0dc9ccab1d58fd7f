"""Eight prompts, and under each picture what the reader reads: `python -m experiments.shapes.sheet`.

A line in green is what the prompt says; one in red is not.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data_prep.command_line import command_line, option
from experiments.samplers.figures import GAP
from ldm.checkpoints.bundle import Bundle
from ldm.evaluation.figures import INK, PAPER, save_png
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.io.pictures import to_picture
from ldm.shapes.reading import read
from ldm.shapes.sentences import Group, judge, noun, understood

PROMPTS = (
    "a large blue star",
    "three small red circles",
    "four small yellow crosses",
    "a small green ring above a large pink square",
    "two large orange triangles to the left of a small cyan frame",
    "a small purple diamond inside a large yellow ring",
    "green cross, and below it a pair of pink stars",
    "a large red square to the right of a large red circle",
)
SEEDS, SIDE, LINE, TEXT_SIZE = 3, 128, 13, 10  # pictures a prompt; pixels
RIGHT, WRONG = (20, 120, 50), (190, 30, 30)


@dataclass(kw_only=True)
class Options:
    """Which model generates, and where the sheet goes."""

    bundle: str = option("runs/shapes", "Bundle, run or experiment that was trained on shapes.")
    out: str = option("experiments/shapes/sheet.png", "The sheet.")
    seed: int = option(0, "Seed of the first picture of each prompt.")


def main(options: Options) -> None:
    """Generates the pictures, reads them and writes the sheet.

    Raises:
        BundleError: there is no such bundle, or it doesn't generate.
    """
    generator = open_latent_diffusion(Bundle.open(options.bundle))
    prompts = [prompt for prompt in PROMPTS for _ in range(SEEDS)]
    pictures = generator(prompts, [options.seed + k % SEEDS for k in range(len(prompts))])
    read_as = [reading_of(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    save_png(sheet(pictures, read_as), Path(options.out))
    right = sum(is_right for _, is_right in read_as)
    print(f"{options.out}: {right} of {len(prompts)} pictures show what their prompt says")


def reading_of(picture: Tensor, prompt: str) -> tuple[str, bool]:
    """What a picture (uint8, 3 h w) shows, in words, and whether the prompt says so."""
    found = read(picture.permute(1, 2, 0).contiguous().numpy())
    if found.things is None:
        return f"unreadable: {found.reason}", False
    looks = Counter((thing.size, thing.colour, thing.shape) for thing in found.things)
    groups = [
        Group(count=count, size=size, colour=colour, shape=shape)
        for (size, colour, shape), count in looks.items()
    ]
    words = ", ".join(noun(group) for group in groups)
    return words, judge(understood(prompt), found.things).everything


def sheet(pictures: Tensor, read_as: list[tuple[str, bool]]) -> Image.Image:
    """Two prompts a row, with their pictures (uint8, b 3 h w) and a line of words under each."""
    block = SEEDS * (SIDE + GAP) + 3 * GAP
    height = SIDE + 4 * LINE + 2 * GAP
    canvas = Image.new("RGB", (2 * block, len(PROMPTS) // 2 * height + GAP), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    enlarged = torch.nn.functional.interpolate(pictures.float(), SIDE).to(torch.uint8)
    for number, prompt in enumerate(PROMPTS):
        left, top = number % 2 * block + GAP, number // 2 * height + GAP
        draw.text((left, top), prompt, fill=INK, font=font)
        for k in range(SEEDS):
            words, is_right = read_as[number * SEEDS + k]
            x, y = left + k * (SIDE + GAP), top + LINE + GAP
            canvas.paste(to_picture(enlarged[number * SEEDS + k]), (x, y))
            for line, text in enumerate(lines_of(words, font)):
                place = (x, y + SIDE + line * LINE)
                draw.text(place, text, fill=RIGHT if is_right else WRONG, font=font)
    return canvas


def lines_of(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """At most three lines, none wider than a picture."""
    lines = [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= SIDE else [*lines, word]
    return lines[:3]


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
