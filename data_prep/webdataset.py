"""Writes shards of a WebDataset, such as img2dataset's: `python -m data_prep.webdataset source=... out=...`.

The source is a folder of .tar files, or a pattern such as 'shards/{00000..00010}.tar'. Tars are local files,
and are never extracted. A sample is what has one name up to the first dot: a picture (jpg, jpeg, png, webp)
with its captions: `texts` in its json, or else its txt, or else `caption` in its json. If every tar's name
begins with train, val or test, that is its split. Tars that are compressed, cut or damaged are refused.
"""

import posixpath
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from data_prep.command_line import command_line, option
from data_prep.options import PreparationOptions
from data_prep.pairing import SEVERAL, Collection, Place, Row, pair
from data_prep.preparation import prepare
from data_prep.tally import LeftOut, Tally, total
from ldm.data import DataError
from ldm.data.picture_files import is_hidden
from ldm.data.shards import is_plain, tar_members
from ldm.data.tars import FIRST_DOT, PICTURES, TEXTS, beyond_first_dot, expanded, part_of, sample_captions

SPLIT_NAME = re.compile(r"(train|validation|val|test)(?![a-z])")

Parts = dict[str, Place]  # extension -> where its bytes lie


@dataclass(kw_only=True)
class Options(PreparationOptions):
    """The shared options; `source` is a folder or a pattern."""

    source: str = option("", "Folder of .tar files, or a pattern such as 'shards/{00000..00010}.tar'.")


def main(options: Options) -> None:
    """Writes the shards."""
    prepare(collect(find_tars(options.source)), options, name=Path(options.out).name)


def find_tars(source: str) -> list[Path]:
    """The tars of a folder, or of a pattern with braces.

    Raises DataError: none there, or one that is missing.
    """
    if not source:
        raise DataError(
            "source= is missing: name a folder of tars, or a pattern like 'shards/{00000..00010}.tar'"
        )
    if Path(source).is_dir():
        if tars := sorted(path for path in Path(source).glob("*.tar") if not is_hidden(path.name)):
            return tars
        raise DataError(f"source={source}: no .tar there")
    tars = [Path(path) for path in expanded(source)]
    if missing := [path for path in tars if not path.is_file()]:
        raise DataError(f"source={source}: {missing[0]} is no file, nor a folder")
    return tars


def collect(tars: list[Path]) -> Collection:
    """The pairs in some tars."""
    tally = Tally()
    pictures: dict[str, Place] = {}
    rows: list[Row] = []
    for path, split in zip(tars, splits_by_name([path.name for path in tars]), strict=True):
        before = total(tally.pictures)
        samples = tar_samples(path, tally)
        if not samples and total(tally.pictures) == before:
            tally.leave_picture("tar without samples", path.name)
        for key, parts in samples.items():
            try:
                name = picture_name(key, parts, pictures)
                captions = sample_captions({kind: parts[kind].read() for kind in TEXTS if kind in parts})
            except LeftOut as left:
                tally.leave_picture(str(left), f"{path.name}/{key}")
                continue
            pictures[name] = parts[name.rpartition(".")[2]]
            rows += (Row(name, number, text, split) for number, text in captions)
    left_out = total(tally.pictures)
    collection = pair(rows, pictures, forms=[f"{len(tars)} tars, {tars[0]} the first"], tally=tally)
    collection.num_pictures += left_out
    return collection


def splits_by_name(names: list[str]) -> list[str]:
    """The split of each file, if every name begins with one; else none."""
    found = [SPLIT_NAME.match(posixpath.basename(name)) for name in names]
    return [match[1] if match and all(found) else "" for match in found]


def tar_samples(path: Path, tally: Tally) -> dict[str, Parts]:
    """Key -> pictures and texts, of one tar; what is no plain file of a plain name is left out."""
    samples: dict[str, Parts] = {}
    dotted: list[tuple[str, str]] = []  # key, sentence
    for member in tar_members(path):
        part = part_of(member.name)
        if found := beyond_first_dot(member.name):
            dotted.append(found)
        if part is None or member.isdir():
            continue
        key, extension = part
        if not is_plain(member):
            tally.leave_picture("link, device or file with holes", f"{path.name}/{member.name}")
        elif member.name.startswith("/") or ".." in PurePosixPath(member.name).parts:
            tally.leave_picture("name that leads outside", f"{path.name}/{member.name}")
        elif extension in samples.setdefault(key, {}):
            tally.leave_picture("member that is there twice", f"{path.name}/{member.name}")
            samples[key]["twice"] = Place("", 0)
        else:
            samples[key][extension] = Place(str(path), member.size, member.offset_data)
    for key, sentence in dotted:
        if not samples.get(key, {}).keys() & PICTURES:  # else it is a companion, as 0.mask.png of 0.jpg
            tally.leave_picture(FIRST_DOT, f"{path.name}: {sentence}")
    return samples


def picture_name(key: str, parts: Parts, taken: Iterable[str]) -> str:
    """The name of the one picture of a sample.

    Raises LeftOut: none or several, or another sample of the same name.
    """
    found = parts.keys() & PICTURES
    if "twice" in parts or len(found) > 1:
        raise LeftOut(SEVERAL)
    if not found:
        raise LeftOut("captions without a picture")
    name = f"{key}.{found.pop()}"
    if name in taken:
        raise LeftOut("key of another picture")
    return name


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
