"""What a set looks like: a sheet of pictures with a caption each, and histograms of sizes and lengths."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ldm.checkpoints.pictures import save_figure, write_png
from ldm.data.decode import EncodedPicture

COLUMNS, SIDE, GAP = 8, 192, 8  # pixels but for the first
LINES, LINE_WIDTH, LINE_HEIGHT, FONT_SIZE = 5, 34, 13, 11
PAPER, INK, FAINT = "white", "black", "gray"


class Specimen(NamedTuple):
    """An encoded picture with the line above and the caption below it."""

    image: bytes
    title: str
    caption: str


def draw_sheet(specimens: Sequence[Specimen], path: Path) -> None:
    """Pictures row by row, each fitted into a square, with their captions."""
    cell_width, cell_height = SIDE + GAP, SIDE + (LINES + 1) * LINE_HEIGHT + GAP
    rows = -(-len(specimens) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell_width + GAP, max(1, rows) * cell_height + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, specimen in enumerate(specimens):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * cell_width, GAP + row * cell_height
        picture = Image.fromarray(np.ascontiguousarray(EncodedPicture(specimen.image).pixels()))
        picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)  # small ones grow
        pen.text((left, top), specimen.title[: LINE_WIDTH - 2], fill=FAINT, font=font)
        sheet.paste(picture, (left, top + LINE_HEIGHT))
        lines = textwrap.wrap(specimen.caption, LINE_WIDTH, max_lines=LINES, placeholder=" ...")
        for line, text in enumerate(lines):
            below = top + LINE_HEIGHT * (1 + line) + picture.height
            pen.text((left, below), text, fill=INK, font=font)
    write_png(sheet, path)


def draw_histograms(sizes: Sequence[tuple[int, int]], words: Sequence[int], path: Path) -> None:
    """Picture sides, aspect ratios and caption lengths."""
    width, height = np.array(sizes, dtype=np.float64).T
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    sides, aspects, lengths = figure.subplots(1, 3)
    sides.hist([width, height], bins=40, label=["width", "height"], histtype="stepfilled", alpha=0.6)
    sides.legend()
    sides.set(title=f"{len(sizes):,} pictures", xlabel="pixels", ylabel="pictures")
    aspects.hist(width / height, bins=60)
    aspects.set(title="aspect ratio", xlabel="width / height", ylabel="pictures")
    lengths.hist(words, bins=np.arange(max(words) + 2) - 0.5)
    title = f"{len(words):,} captions, {np.mean(words):.1f} words in the mean"
    lengths.set(title=title, xlabel="words", ylabel="captions")
    save_figure(figure, path, dpi=110)
