"""Pictures as files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ldm.data.picture_files import FIGURE


def to_picture(image: Tensor) -> Image.Image:
    """uint8, 3 h w -> PIL."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def save_picture(image: Tensor, path: Path, *, texts: Mapping[str, str]) -> None:
    """A PNG that carries texts, such as how it was made, by name."""
    note = PngInfo()
    for name, text in texts.items():
        note.add_itxt(name, text)
    write_whole(to_picture(image), path, pnginfo=note)


def save_sheet(images: Sequence[Tensor], path: Path, *, columns: int, gap: int = 4, zoom: int = 2) -> None:
    """All pictures on one sheet, row by row, enlarged without smoothing."""
    height, width = (side * zoom for side in images[0].shape[-2:])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        place = (gap + column * (width + gap), gap + row * (height + gap))
        sheet.paste(to_picture(image).resize((width, height), Image.Resampling.NEAREST), place)
    write_whole(sheet, path, pnginfo=figure_note())


def figure_note() -> PngInfo:
    """The text of a PNG that is to be looked at: no reader of a folder takes it for one of the pictures."""
    note = PngInfo()
    note.add_text(FIGURE, "no sample")
    return note


def write_whole(picture: Image.Image, path: Path, **options: object) -> None:
    """Writes a PNG under a temporary name and renames it: it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        picture.save(temporary, format="PNG", **options)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
