"""Shards of any folder of captioned pictures: `python -m data_prep.folder source=... out=...`.

A table has a caption in each row; in jsonl, a row may hold a list of captions. Without a table, the captions
of a picture are the lines of the .txt file beside it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.caption_files import READERS, Columns, caption_rows
from data_prep.options import PreparationOptions
from data_prep.pairing import Collection, Place, Row, pair
from data_prep.preparation import prepare
from data_prep.splits import find_lists, read_lists
from data_prep.tally import Tally
from ldm.data.index import DataError
from ldm.data.picture_files import files_under, find_pictures
from ldm.data.tables import numbered_lines, read_text
from ldm.options import command_line, option


@dataclass(kw_only=True)
class Options(PreparationOptions):
    """The shared options, and where the captions are."""

    captions: str = option(
        "", "Table of captions (.csv, .tsv or .jsonl); by default, text files beside the pictures."
    )
    image: str = option("", "Column with the path of the picture; by default image or file_name.")
    caption: str = option("", "Column with the caption; by default caption or text.")
    number: str = option("", "Column with the caption's number; by default, captions are numbered in order.")
    split_column: str = option("", "Column with train, val or test.")


def main(options: Options) -> None:
    """Writes the shards.

    Raises:
        ValueError, DataError: options, a source or a disk that can't be used.
    """
    options.check()
    source = options.source_folder()
    found = find_pictures(source)
    print(*found.sentences(source), sep="\n", end="\n" if found.passed_over else "")
    pictures = {name: Place.of(source / name) for name in found.pictures}
    if not pictures:
        raise DataError(f"{source}: no JPEG, PNG or WebP there")
    collection = beside(source, pictures) if not options.captions else listed(pictures, options)
    if not collection.splits and (lists := find_lists([source])):
        collection.forms.append(f"split lists: {', '.join(path.name for path in lists)}")
        collection.splits = read_lists(lists)
    prepare(collection, options, name=Path(options.out).name)


def listed(pictures: dict[str, Place], options: Options) -> Collection:
    """The pairs that a caption file names.

    Raises:
        DataError: no such file, of another kind, or without the columns.
    """
    path = Path(options.captions)
    if not path.is_file():
        raise DataError(f"captions={path} is no file")
    if path.suffix.lower() not in READERS:
        raise DataError(f"captions={path}: expected a file of kind {', '.join(READERS)}")
    columns = Columns(options.image, options.caption, options.number, options.split_column)
    tally = Tally()
    rows = caption_rows(path, tally, columns=columns)
    return pair(rows, pictures, forms=[f"captions: {path}"], tally=tally)


def beside(source: Path, pictures: dict[str, Place]) -> Collection:
    """The pairs of pictures and the .txt files beside them; a text beside two pictures is of neither."""
    named: dict[str, list[str]] = {}
    for name in pictures:
        named.setdefault(name.rpartition(".")[0], []).append(name)
    texts = [name for name in files_under(source, (".txt",)) if name not in top_lists(source)]

    def rows() -> Iterator[Row]:
        for text in sorted(texts):
            picture = named.get(text.rpartition(".")[0], [text])[0]
            for number, (_, line) in enumerate(numbered_lines(read_text(source / text))):
                yield Row(picture, number, line)

    stems = {text.rpartition(".")[0] for text in texts}
    ambiguous = {name for stem in stems & named.keys() if len(named[stem]) > 1 for name in named[stem]}
    forms = [f"{len(texts)} .txt files beside the pictures"]
    return pair(rows(), pictures, forms=forms, tally=Tally(), ambiguous=ambiguous)


def top_lists(source: Path) -> set[str]:
    """The names of split lists in the source itself: no captions."""
    return {path.name for path in find_lists([source])}


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
