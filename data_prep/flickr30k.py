"""Writes shards of Flickr30k: `python -m data_prep.flickr30k source=... out=data/flickr30k`.

The source contains the pictures, or a folder flickr30k-images or flickr30k_images with them, nested once or
twice. Unless captions= names a file, the first of these files is used that is there:

  results_20130124.token      name#number <tab> caption
  results.csv, captions.txt   name| number| caption, with or without a header;
                              name,number,caption or name,caption, with a header
  dataset_flickr30k.json      Karpathy's, with splits

Split lists (karpathy_train.txt, train.txt, ...) and dataset_flickr30k.json are looked for beside them.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.caption_files import UNREADABLE, Columns, caption_rows, placed_lines
from data_prep.command_line import command_line, option
from data_prep.options import PreparationOptions
from data_prep.pairing import Collection, Place, Row, pair
from data_prep.preparation import prepare
from data_prep.splits import find_lists, key_of, read_lists
from data_prep.tally import Tally
from ldm.data import DataError
from ldm.data.picture_files import SUFFIXES, files_under
from ldm.data.texts import LINE_END, read_table, read_text

FOLDERS = ("flickr30k-images", "flickr30k_images")
KARPATHY = "dataset_flickr30k.json"
CAPTION_FILES = ("results_20130124.token", "results.token", "results.csv", "captions.txt", KARPATHY)
TOKEN_ROW = re.compile(r"([^\t#]+)#(\d+)\t(.*)", re.DOTALL)
HEADER = re.compile(r"\s*(image|image_name)\s*[|,;\t]", re.IGNORECASE)
NUMBER_AND_CAPTION = re.compile(r"\s*(\d+)\s+(\S.*)", re.DOTALL)

Reader = Callable[[Path, Tally], Iterator[Row]]


@dataclass(kw_only=True)
class Options(PreparationOptions):
    """The shared options, and the caption file."""

    out: str = option("data/flickr30k", "Folder for shards, index, splits.json and report.json.")
    captions: str = option("", "Caption file; by default the first known one in the source.")


def main(options: Options) -> None:
    """Writes the shards."""
    prepare(collect(options.source_folder(), options.captions), options, name="flickr30k")


def collect(source: Path, captions: str = "") -> Collection:
    """The pairs of a Flickr30k folder. Raises DataError: no captions or no pictures there."""
    folders = list(known_folders(source))
    path = Path(captions) if captions else find_captions(folders)
    if not path.is_file():
        raise DataError(f"captions={path} is no file")
    pictures = find_pictures(folders)
    if not pictures:
        raise DataError(f"{source}: no pictures there, nor in {' or '.join(FOLDERS)}")
    tally = Tally()
    form, read = reader_of(path)
    forms = [f"{len(pictures)} pictures under {source}", f"captions: {path} ({form})"]
    collection = pair(read(path, tally), pictures, forms=forms, tally=tally)
    collection.splits = find_splits([path.parent, *folders], forms)
    return collection


def known_folders(source: Path) -> Iterator[Path]:
    """The source, and its folders as distributions have them: Kaggle's is nested in one of the same name."""
    level = [source]
    for _ in range(3):
        yield from level
        level = [folder / name for folder in level for name in FOLDERS if (folder / name).is_dir()]


def find_captions(folders: list[Path]) -> Path:
    """The caption file that is there."""
    for name in CAPTION_FILES:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise DataError(
        f"{folders[0]}: no captions there; expected {' or '.join(CAPTION_FILES)}, or captions=FILE"
    )


def find_pictures(folders: list[Path]) -> dict[str, Place]:
    """File name -> place; the outermost of two with the same name."""
    pictures: dict[str, Place] = {}
    for folder in folders:
        names = (name for name in files_under(folder, SUFFIXES) if "/" not in name)
        found = {name: Place.of(folder / name) for name in names}
        pictures = found | pictures
    return pictures


def find_splits(folders: list[Path], forms: list[str]) -> dict[str, str]:
    """Key -> split by the lists in the folders, or else by Karpathy's json, or none."""
    if lists := find_lists(folders):
        forms.append(f"split lists: {', '.join(path.name for path in lists)} in {lists[0].parent}")
        return read_lists(lists)
    for folder in folders:
        if (folder / KARPATHY).is_file():
            forms.append(f"splits: {folder / KARPATHY}")
            return {key_of(image["filename"]): image["split"] for image in karpathy_images(folder / KARPATHY)}
    return {}


def reader_of(path: Path) -> tuple[str, Reader]:
    """(name of the form, reader) of a caption file, by its first line."""
    start = read_text(path).lstrip()
    line = LINE_END.split(start[:4096], maxsplit=1)[0]
    if start.startswith("{"):
        return "Karpathy's json", karpathy_rows
    if TOKEN_ROW.match(line):
        return "name#number, tab, caption", token_rows
    if "|" in line:
        return "name| number| caption", bar_rows
    if HEADER.match(line):
        return "comma separated, with a header", comma_rows
    raise DataError(f"{path}: {line[:60]!r} is none of the forms of Flickr30k's captions; --help lists them")


def token_rows(path: Path, tally: Tally) -> Iterator[Row]:
    """Rows of results_20130124.token."""
    for place, line in placed_lines(path):
        if found := TOKEN_ROW.fullmatch(line):
            yield Row(found[1], int(found[2]), found[3])
        else:
            tally.leave_caption(UNREADABLE, place)


def bar_rows(path: Path, tally: Tally) -> Iterator[Row]:
    """Rows of Kaggle's results.csv: quotes and commas are the caption's; a missing second bar is healed."""
    for place, line in placed_lines(path):
        name, *rest = (part.strip() for part in line.split("|", 2))
        if HEADER.match(line):
            continue
        if len(rest) == 1 and (found := NUMBER_AND_CAPTION.fullmatch(rest[0])):
            tally.heal("missing second |", place)
            rest = [found[1], found[2]]
        if len(rest) == 2 and rest[0].isdecimal():
            yield Row(name, int(rest[0]), rest[1])
        else:
            tally.leave_caption(UNREADABLE, place)


def comma_rows(path: Path, tally: Tally) -> Iterator[Row]:
    """Rows of a csv with a header, as newer copies have it."""
    header = read_table(path).header.cells
    columns = Columns(image=header[0], caption=header[-1], number=header[1] if len(header) == 3 else "")
    yield from caption_rows(path, tally, columns=columns)


def karpathy_rows(path: Path, tally: Tally) -> Iterator[Row]:
    """Rows of dataset_flickr30k.json, numbered in its order."""
    for image in karpathy_images(path):
        for sentence in image["sentences"]:
            yield Row(image["filename"], -1, sentence["raw"])


def karpathy_images(path: Path) -> list[dict]:
    """The entries of dataset_flickr30k.json. Raises DataError: another json."""
    try:
        images = json.loads(read_text(path))["images"]  # not read_json: odd captions are left out one by one
        for image in images:
            # not asserted: python -O would leave it out
            if not isinstance(image["filename"] + image["split"], str):
                raise TypeError("its names are no texts")
            if not all("raw" in sentence for sentence in image["sentences"]):
                raise KeyError("raw")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{path} is not Karpathy's json ({error!r}): expected images with filename, split, sentences"
        ) from error
    return images


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
