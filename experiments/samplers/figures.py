"""The sheet of pictures and the curves of `experiments.samplers`."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.evaluation.figures import INK, PAPER, save_png
from ldm.io.pictures import save_figure, to_picture

LABEL, GAP = 110, 4  # pixels: width of a row's name, space between pictures
SHOWN = 2  # pictures of each run
STYLES = ("-", "--", ":")


def draw_sheet(runs: Sequence[tuple[str, int, Tensor]], path: Path) -> Path:
    """One line a sampler, its first pictures for each number of calls.

    Args:
        runs: (sampler, calls, pictures uint8 b 3 h w), a sampler's runs one after the other.
    """
    names = list(dict.fromkeys(name for name, _, _ in runs))
    side = runs[0][2].shape[-1] + GAP
    columns = max(sum(name == one for one, _, _ in runs) for name in names)
    block = SHOWN * side + GAP
    sheet = Image.new("RGB", (LABEL + columns * block, (len(names)) * (side + 14) + GAP), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for line, name in enumerate(names):
        top = line * (side + 14)
        draw.text((GAP, top + 14 + side // 2 - 8), name, fill=INK, font=font)
        for column, (calls, images) in enumerate((c, i) for one, c, i in runs if one == name):
            left = LABEL + column * block
            draw.text((left, top), f"{calls} calls", fill=INK, font=font)
            for number, image in enumerate(images[:SHOWN]):
                sheet.paste(to_picture(image), (left + number * side, top + 14))
    return save_png(sheet, path)


def draw_curves(points: Sequence[tuple[str, int, float, float]], path: Path) -> Path:
    """Distance and score against calls, a line a sampler.

    Args:
        points: (sampler, calls, distance, score).
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, name in enumerate(dict.fromkeys(point[0] for point in points)):
        mine = [point[1:] for point in points if point[0] == name]
        calls, distances, scores = zip(*mine, strict=True)
        for panel, values in zip(panels, (distances, scores), strict=True):
            panel.plot(calls, values, STYLES[number // 10], marker=".", label=name)
    for panel, title in zip(panels, ("distance to 250 steps of DDIM", "own CLIP score"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_xlabel("calls of the guided denoiser")
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[1].legend(fontsize=7, ncols=2)
    return save_figure(figure, path, dpi=90)
