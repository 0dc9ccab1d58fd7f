"""Pictures as PNG files: samples carry how they were made, figures the mark that they are no samples."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.io.writing import write

if TYPE_CHECKING:  # a command that only looks for pictures does without torch
    from torch import Tensor

FIGURE = "ldm figure"  # keyword of a text in a PNG: no reader of a folder takes it for a picture
NO_SAMPLE = "to be looked at; no sample"
HEAD = 8192  # bytes of a PNG of ours in which its texts begin
TEXT = (b"tEXt", b"iTXt")  # kinds of chunks


def to_picture(image: "Tensor") -> Image.Image:
    """uint8, 3 h w -> PIL."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def save_picture(image: "Tensor", path: Path, *, texts: Mapping[str, str], below: Path | None = None) -> None:
    """A PNG that carries texts, such as how it was made, by name."""
    note = PngInfo()
    for name, text in texts.items():
        note.add_itxt(name, text)
    write_png(to_picture(image), path, below=below, pnginfo=note)


def save_sheet(
    images: Sequence["Tensor"],
    path: Path,
    *,
    columns: int,
    gap: int = 4,
    zoom: int = 2,
    below: Path | None = None,
) -> None:
    """All pictures on one sheet, row by row, enlarged without smoothing."""
    height, width = (side * zoom for side in images[0].shape[-2:])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        place = (gap + column * (width + gap), gap + row * (height + gap))
        sheet.paste(to_picture(image).resize((width, height), Image.Resampling.NEAREST), place)
    write_png(sheet, path, below=below)


def save_figure(figure: Any, path: Path, *, dpi: int, below: Path | None = None) -> Path:
    """Writes a figure of matplotlib in the format that its name ends with, whole or not at all."""
    buffer = io.BytesIO()
    metadata = {FIGURE: NO_SAMPLE} if path.suffix == ".png" else None
    figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    return write(path, buffer.getvalue(), below=below)


def write_png(picture: Image.Image, path: Path, *, below: Path | None = None, **options: object) -> None:
    """Writes a PNG, whole or not at all."""
    write(path, encode_png(picture, **options), below=below)


def encode_png(picture: Image.Image, **options: object) -> bytes:
    """A picture as the bytes of a PNG; without a `pnginfo` of its own it is marked as a figure."""
    buffer, note = io.BytesIO(), PngInfo()
    note.add_text(FIGURE, NO_SAMPLE)
    picture.save(buffer, format="PNG", **({"pnginfo": note} | options))
    return buffer.getvalue()


def carries(path: Path, keyword: str) -> bool:
    """Whether a file is a PNG with a text of this keyword before its pixels, as our commands write them."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    return head.startswith(b"\x89PNG") and any(kind + keyword.encode() + b"\0" in head for kind in TEXT)
