"""Pictures as PNG files: samples contain how they were generated, figures a mark that they are no samples."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.io.writing import write

if TYPE_CHECKING:  # a command that only lists pictures does not import torch
    from torch import Tensor

FIGURE = "ldm figure"  # keyword of a text in a PNG: readers of folders leave such a file out
NO_SAMPLE = "to be looked at; no sample"
ZOOM, GAP = 2, 4  # of a sheet: how much its pictures are enlarged, and pixels between them
HEAD = 8192  # bytes of a PNG of ours in which its texts begin
TEXT = (b"tEXt", b"iTXt")  # kinds of chunks


def to_picture(image: "Tensor") -> Image.Image:
    """The PIL image of a uint8 tensor, 3 h w."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def save_picture(image: "Tensor", path: Path, *, texts: Mapping[str, str], below: Path | None = None) -> None:
    """Writes a PNG with texts by name, such as how it was generated."""
    write(path, encode_sample(image, texts=texts), below=below)


def encode_sample(image: "Tensor", *, texts: Mapping[str, str]) -> bytes:
    """The bytes of a PNG with texts by name."""
    note = PngInfo()
    for name, text in texts.items():
        note.add_itxt(name, text)
    return encode_png(to_picture(image), pnginfo=note)


def save_sheet(images: Sequence["Tensor"], path: Path, *, columns: int, below: Path | None = None) -> None:
    """Writes a PNG with all pictures, row by row, enlarged without smoothing."""
    height, width = (side * ZOOM for side in images[0].shape[-2:])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        place = (GAP + column * (width + GAP), GAP + row * (height + GAP))
        sheet.paste(to_picture(image).resize((width, height), Image.Resampling.NEAREST), place)
    write(path, encode_png(sheet), below=below)


def save_figure(figure: Any, path: Path, *, dpi: int, below: Path | None = None) -> Path:
    """Writes a figure of matplotlib in the format of the path's extension; returns the path."""
    buffer = io.BytesIO()
    metadata = {FIGURE: NO_SAMPLE} if path.suffix == ".png" else None
    figure.savefig(buffer, format=path.suffix[1:], dpi=dpi, metadata=metadata)
    return write(path, buffer.getvalue(), below=below)


def encode_png(picture: Image.Image, **options: object) -> bytes:
    """The bytes of a PNG; without a `pnginfo` among the options it is marked as a figure."""
    buffer, note = io.BytesIO(), PngInfo()
    note.add_text(FIGURE, NO_SAMPLE)
    picture.save(buffer, format="PNG", **({"pnginfo": note} | options))
    return buffer.getvalue()


def carries(path: Path, keyword: str) -> bool:
    """Whether a file is a PNG with a text of this keyword before its pixels, where our commands put it."""
    with path.open("rb") as stream:
        head = stream.read(HEAD)
    return head.startswith(b"\x89PNG") and any(kind + keyword.encode() + b"\0" in head for kind in TEXT)
