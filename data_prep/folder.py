"""Shards of any folder of captioned pictures: `python -m data_prep.folder source=... out=...`.

Captions are found where other tools put them: metadata.jsonl, .csv or .parquet of Hugging Face's imagefolder,
.caption files of kohya, .txt files, files, tars and parquet of img2dataset (data_prep/conventions.py). If all
pictures lie in folders named train, val (validation, valid, dev) or test, these are the splits.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep.caption_files import Columns
from data_prep.conventions import collect
from data_prep.options import PreparationOptions
from data_prep.pairing import Place
from data_prep.preparation import prepare
from data_prep.splits import find_lists, folder_splits, read_lists
from ldm.data.picture_files import find_pictures
from ldm.options import command_line, option


@dataclass(kw_only=True)
class Options(PreparationOptions):
    """The shared options, and where the captions are."""

    captions: str = option(
        "",
        "Table of captions (.csv, .tsv, .jsonl or .parquet), or which to take of several that are found:"
        " metadata, .caption, .txt, .json, .tar or .parquet.",
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
    columns = Columns(options.image, options.caption, options.number, options.split_column)
    collection = collect(source, pictures, options.captions, columns)
    if not collection.splits and (lists := find_lists([source])):
        collection.forms.append(f"split lists: {', '.join(path.name for path in lists)}")
        collection.splits = read_lists(lists)
    elif not collection.splits and (splits := folder_splits(pictures)):
        collection.forms.append("splits: the names of the folders")
        collection.splits = splits
    prepare(collection, options, name=Path(options.out).name)


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
