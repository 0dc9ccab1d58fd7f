"""Pictures of a report: what was generated beside the real ones."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ldm.checkpoints.pictures import encode_png, to_picture
from ldm.evaluation.rows import Pair, Shown
from ldm.files import write

MAX_BYTES = 400_000  # of one figure: reports are committed
MARGIN, TEXT_HEIGHT, TEXT_SIZE = 6, 16, 11
INK, PAPER = (30, 30, 30), (255, 255, 255)


def picture_grid(
    pictures: UInt8[Tensor, "n 3 h w"], *, columns: int, titles: Sequence[str] = ()
) -> Image.Image:
    """Pictures row by row, each under its title if there are titles."""
    height, width = pictures.shape[-2:]
    band = TEXT_HEIGHT if titles else 0
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    step_x, step_y = width + MARGIN, height + band + MARGIN
    canvas = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for number, picture in enumerate(pictures):
        x, y = MARGIN + number % columns * step_x, MARGIN + number // columns * step_y
        if titles:
            draw.text((x, y), fit_text(titles[number], width, font), fill=INK, font=font)
        canvas.paste(to_picture(picture), (x, y + band))
    return canvas


def comparison(shown: Sequence[Shown]) -> Image.Image:
    """One line a caption: its generated pictures, the real picture nearest to the first, the right one."""
    samples = len(shown[0].generated)
    size = shown[0].generated.shape[-1]
    step_x, step_y = size + MARGIN, size + TEXT_HEIGHT + MARGIN
    gap = 2 * MARGIN  # between what was made and what is real
    width = (samples + 2) * step_x + MARGIN + gap
    font = ImageFont.load_default(TEXT_SIZE)
    names = ["generated", *[""] * (samples - 1), "nearest" if samples == 1 else "near 1st", "right"]
    lefts = [MARGIN + column * step_x + (gap if column >= samples else 0) for column in range(samples + 2)]
    canvas = Image.new("RGB", (width, len(shown) * step_y + TEXT_HEIGHT + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for name, x in zip(names, lefts, strict=True):
        draw.text((x, 2), name, fill=INK, font=font)
    for line, one in enumerate(shown):
        y = TEXT_HEIGHT + line * step_y
        draw.text((MARGIN, y), fit_text(one.prompt, width - 2 * MARGIN, font), fill=INK, font=font)
        for picture, x in zip([*one.generated, one.nearest, one.right], lefts, strict=True):
            if picture is not None:
                canvas.paste(to_picture(picture), (x, y + TEXT_HEIGHT))
    return canvas


def pair_sheet(pairs: Sequence[Pair], *, columns: int = 2) -> Image.Image:
    """Pairs row by row: the generated picture, the real one nearest to it; above them prompt and distance."""
    size = pairs[0].generated.shape[-1]
    width, height = 2 * size + 3 * MARGIN, size + 2 * TEXT_HEIGHT + MARGIN
    columns = min(columns, len(pairs))
    canvas = Image.new("RGB", (columns * width, -(-len(pairs) // columns) * height + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for number, pair in enumerate(pairs):
        x, y = MARGIN + number % columns * width, MARGIN + number // columns * height
        for line, words in enumerate((pair.prompt, f"generated | {pair.split}, at {pair.distance:.3f}")):
            text = fit_text(words, width - 2 * MARGIN, font)
            draw.text((x, y + line * TEXT_HEIGHT), text, fill=INK, font=font)
        for place, picture in enumerate((pair.generated, pair.real)):
            canvas.paste(to_picture(picture), (x + place * (size + MARGIN), y + 2 * TEXT_HEIGHT))
    return canvas


def beside(images: Sequence[Image.Image]) -> Image.Image:
    """Images side by side, tops aligned."""
    width, height = sum(image.width for image in images), max(image.height for image in images)
    canvas = Image.new("RGB", (width, height), PAPER)
    left = 0
    for image in images:
        canvas.paste(image, (left, 0))
        left += image.width
    return canvas


def fit_text(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut with an ellipsis where it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def save_png(image: Image.Image, path: Path, *, max_bytes: int = MAX_BYTES) -> Path:
    """Saves as PNG below a size: first as it is, then with 256 colours, then smaller and smaller."""
    data = encode_png(image, optimize=True)
    if len(data) > max_bytes:
        data = encode_png(image.quantize(256), optimize=True)
    while len(data) > max_bytes and min(image.size) > 1:
        image = image.resize(
            (max(1, image.width * 4 // 5), max(1, image.height * 4 // 5)), Image.Resampling.LANCZOS
        )
        data = encode_png(image.quantize(256), optimize=True)
    return write(path, data)
