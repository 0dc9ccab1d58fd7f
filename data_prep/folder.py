"""Writes shards of any folder with captioned pictures: `python -m data_prep.folder source=... out=...`.

Captions are found where other tools put them. If all pictures are in folders named train, val (validation,
valid, dev) or test, these are the splits.

| captions=  | what is found                                                 | captions of a picture         |
| ---------- | ------------------------------------------------------------- | ----------------------------- |
| `metadata` | metadata.jsonl, .csv, .parquet (Hugging Face's imagefolder)   | its rows, a text or list each |
| `.caption` | .caption files beside the pictures (kohya)                    | one a line                    |
| `.txt`     | .txt files beside the pictures                                | one a line                    |
| `.json`    | .json and .txt beside the pictures (img2dataset's files)      | as of a sample in a tar       |
| `.tar`     | tars, where no picture is a file (img2dataset's webdataset)   | as of data_prep.webdataset    |
| `.parquet` | pictures in parquet, where neither is (img2dataset, datasets) | its row                       |

If two are found, choose one with captions=, or give the path of a table. The parquet files that img2dataset
writes beside its pictures and tars contain no pictures and are skipped.
"""

import posixpath
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from data_prep import parquet, webdataset
from data_prep.caption_files import READERS, Columns, caption_rows, form_of, rows_of_entry
from data_prep.command_line import command_line, option
from data_prep.options import PreparationOptions
from data_prep.pairing import Collection, Place, Row, pair
from data_prep.preparation import prepare
from data_prep.splits import find_lists, folder_splits, read_lists
from data_prep.tally import LeftOut, Tally
from ldm.data import DataError
from ldm.data.picture_files import files_under, find_pictures
from ldm.data.tars import sample_captions
from ldm.data.texts import numbered_lines, read_text

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
BESIDE = (".caption", ".txt", ".json")
KINDS = ("metadata", *BESIDE, ".tar", ".parquet")

Files = dict[str, list[str]]  # kind -> paths in the folder


def collect(source: Path, pictures: Mapping[str, Place], captions: str, columns: Columns) -> Collection:
    """The pairs of a folder.

    Args:
        source: the folder.
        pictures: those in it that are files.
        captions: a kind of `KINDS`, the path of a table, or empty: what is found.
        columns: of tables.

    Raises DataError: no captions, several conventions, or files that can't be read.
    """
    if captions and captions not in KINDS:
        return listed(Path(captions), source, pictures, columns)
    files = found_files(source)
    kind = captions or recognise(source, pictures, files)
    paths = [source / name for name in files[kind]]
    if not paths:
        raise DataError(f"captions={captions}: {source} has no such files")
    if kind == ".tar":
        return webdataset.collect(paths)
    if kind == ".parquet":
        return in_parquet(source, files[kind], columns)
    if kind == "metadata":
        return from_metadata(source, files[kind], pictures, columns)
    names = files[kind] if kind != ".json" else files[".json"] + files[".txt"]
    return beside(source, kind, names, pictures)


def found_files(source: Path) -> Files:
    """The files of each kind; split lists in the folder itself are no captions."""
    lists = {path.name for path in find_lists([source])}
    files: Files = {kind: [] for kind in KINDS}
    for name in sorted(files_under(source, (*BESIDE, *READERS, ".tar"))):
        kind = "metadata" if posixpath.basename(name) in METADATA else posixpath.splitext(name)[1].lower()
        if kind in files and name not in lists:
            files[kind].append(name)
    return files


def recognise(source: Path, pictures: Mapping[str, Place], files: Files) -> str:
    """The one kind of captions in a folder. Raises DataError: none, or several."""
    stems = {stem_of(name) for name in pictures}
    found = [kind for kind in BESIDE if any(stem_of(name) in stems for name in files[kind])]
    if ".json" in found and not sample_captions({"json": (source / files[".json"][0]).read_bytes()}):
        found.remove(".json")
    if ".json" in found and ".txt" in found:
        found.remove(".txt")
    if files["metadata"]:
        found.append("metadata")
    if not pictures:
        found += [kind for kind in (".tar", ".parquet") if files[kind]][:1]
    if len(found) > 1:
        first, second = (f"{files[kind][0]} (captions={kind})" for kind in found[:2])
        raise DataError(f"{source} has captions in {first} and in {second}: choose one of them")
    if not found:  # texts that lie beside no picture are named one by one
        found = [kind for kind in (".caption", ".txt") if files[kind]]
    if not found and not pictures:
        raise DataError(f"{source}: no JPEG, PNG or WebP there, nor a .tar or .parquet with some")
    if not found:
        raise DataError(
            f"{source} has {len(pictures)} pictures and no captions: write .txt files beside them, or a"
            f" {METADATA[0]} with file_name and text, or name a table with captions=FILE"
        )
    return found[0]


def stem_of(name: str) -> str:
    """A path without the extension."""
    return name.rpartition(".")[0]


def listed(path: Path, source: Path, pictures: Mapping[str, Place], columns: Columns) -> Collection:
    """The pairs that a table names by paths in the source, or metadata in one of its folders by paths there.

    Raises DataError: no such file, of another kind, or without the columns.
    """
    if not path.is_file():
        raise DataError(f"captions={path} is no file, nor one of {', '.join(KINDS)}")
    if path.suffix.lower() not in READERS:
        raise DataError(f"captions={path}: expected a file of kind {', '.join(READERS)}")
    tally = Tally()
    own, whole = path.resolve().parent, source.resolve()
    inner = path.name in METADATA and own != whole and own.is_relative_to(whole)
    folder = own.relative_to(whole).as_posix() if inner else ""
    rows = caption_rows(path, tally, columns=columns, folder=folder)
    return pair(rows, pictures, forms=[f"captions: {path}{form_of(path)}"], tally=tally)


def from_metadata(
    source: Path, files: list[str], pictures: Mapping[str, Place], columns: Columns
) -> Collection:
    """The pairs that metadata files name, by paths in the folder of each.

    Raises DataError: two such files in one folder.
    """
    tally, folders = Tally(), [posixpath.dirname(name) for name in files]
    if len(set(folders)) < len(files):
        twice = next(name for name, folder in zip(files, folders, strict=True) if folders.count(folder) > 1)
        raise DataError(f"{source} has {twice} and another in the same folder: name one with captions=FILE")
    rows = chain.from_iterable(
        caption_rows(source / name, tally, columns=columns, folder=folder)
        for name, folder in zip(files, folders, strict=True)
    )
    return pair(rows, pictures, forms=[f"{len(files)} metadata files, {files[0]} the first"], tally=tally)


def beside(source: Path, kind: str, files: list[str], pictures: Mapping[str, Place]) -> Collection:
    """The pairs of pictures and the texts beside them; a text beside two pictures is of neither."""
    named: dict[str, list[str]] = {}
    for name in pictures:
        named.setdefault(stem_of(name), []).append(name)
    texts: dict[str, list[str]] = {}
    for name in sorted(files):
        texts.setdefault(stem_of(name), []).append(name)

    def rows() -> Iterator[Row]:
        for stem, own in texts.items():
            picture = named.get(stem, own)[0]
            if kind == ".json":  # of a sample as img2dataset writes it
                members = {name.rpartition(".")[2].lower(): (source / name).read_bytes() for name in own}
                yield from (Row(picture, number, text) for number, text in sample_captions(members))
            else:
                lines = (line for name in own for _, line in numbered_lines(read_text(source / name)))
                yield from (Row(picture, number, line) for number, line in enumerate(lines))

    ambiguous = {name for stem in texts.keys() & named.keys() if len(named[stem]) > 1 for name in named[stem]}
    forms = [f"{len(files)} {'.json and .txt' if kind == '.json' else kind} files beside the pictures"]
    return pair(rows(), pictures, forms=forms, tally=Tally(), ambiguous=ambiguous)


def in_parquet(source: Path, files: list[str], columns: Columns) -> Collection:
    """The pairs in the rows of parquet files. Raises DataError: no column of pictures, or several."""
    tally, pictures, rows = Tally(), {}, []
    splits = webdataset.splits_by_name(files)
    for file, split in zip(files, splits, strict=True):
        path = source / file
        image = picture_column(path, columns.image)
        names = [name for name in parquet.column_names(path) if name not in parquet.picture_columns(path)]
        own = columns._replace(image=image).among([image, *names], path)
        for number, entry in parquet.rows_of(path, list(dict.fromkeys(filter(None, own)))):
            place = f"{file}:{number + 1}"
            try:
                ending, cell = parquet.picture_of(entry[image], str(path), number, image)
            except LeftOut as left:
                tally.leave_picture(str(left), place)
                continue
            name = f"{stem_of(file)}/{number:07d}.{ending}"
            pictures[name] = cell
            found = rows_of_entry(entry | {image: name}, own, "", tally, place)
            rows += (row._replace(split=row.split or split) for row in found)
    return pair(rows, pictures, forms=[f"{len(files)} parquet files, {files[0]} the first"], tally=tally)


def picture_column(path: Path, wanted: str) -> str:
    """The column with the pictures. Raises DataError: none, or several."""
    found = [name for name in parquet.picture_columns(path) if not wanted or name == wanted]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{path} has pictures in {' and '.join(found)}: choose one with image=NAME")
    raise DataError(
        f"{path} has no column{f' {wanted!r}' if wanted else ''} with the bytes of pictures; it has"
        f" {', '.join(parquet.column_names(path))}: addresses are downloaded by img2dataset"
    )


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
    """Writes the shards."""
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
