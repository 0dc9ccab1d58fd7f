"""Checks a prepared set completely and shows what is in it: `python -m data_prep.verify root=data/flickr30k`.

It reads the index, every byte of every shard (sha256), every pair, every caption, and every picture with the
decoder that training uses. splits.json and report.json, if present, must agree. The exit status is 1 if
anything is wrong, and the problem is named. Pictures that are equal byte for byte are listed, not refused.
"""

import hashlib
import json
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm import tqdm

from data_prep import splits
from data_prep.command_line import command_line, option
from data_prep.making import over_processes
from data_prep.reports import read_report
from ldm.checkpoints.provenance import published
from ldm.data import DataError
from ldm.data.decode import EncodedPicture
from ldm.data.index import Shard, ShardIndex
from ldm.data.shards import ShardReader, scan_shard
from ldm.io.pictures import encode_png, save_figure
from ldm.io.writing import discard, make_folder, write

NUM_SPECIMENS = 40
SHOWN = 20  # problems on the screen; all are in summary.json
COLUMNS, SIDE, GAP = 8, 192, 8  # pixels but for the first
LINES, LINE_WIDTH, LINE_HEIGHT, FONT_SIZE = 5, 34, 13, 11
PAPER, INK, FAINT = "white", "black", "gray"


@dataclass(kw_only=True)
class Options:
    """Which set is read, and where the findings go."""

    root: str = option("data/flickr30k", "Folder of the set.")
    out: str = option("", "Folder for summary.json, sheet.png and histograms.png; by default root/verify.")
    num_workers: int = option(
        os.cpu_count() or 1, "Worker processes, by default one a core; 0 uses this process."
    )


@dataclass(kw_only=True)
class Findings:
    """What one shard holds, and what is wrong with it."""

    shard: str
    problems: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # width, height
    words: list[int] = field(default_factory=list)  # of each caption
    sided: int = 0  # captions that name a side
    hashes: dict[str, str] = field(default_factory=dict)  # key -> sha256 of its picture


def main(options: Options) -> None:
    """Reads all of a set and writes what it found. Raises DataError: something is wrong with it."""
    index = ShardIndex.load(options.root)
    out = Path(options.out) if options.out else make_folder(index.root / "verify", below=index.root)
    found = []
    tasks = [(index.root, shard) for shard in index.shards]
    with tqdm(total=sum(shard.count for shard in index.shards), desc="verify", unit="picture") as bar:
        for findings in over_processes(check_shard, tasks, num_workers=options.num_workers):
            found.append(findings)
            bar.update(next(shard.count for shard in index.shards if shard.file == findings.shard))
    problems = [*check_documents(index), *(line for findings in found for line in findings.problems)]
    summary = summarise(index, found) | {"problems": problems}
    write(out / "summary.json", json.dumps(summary, ensure_ascii=False, indent=1))
    draw(index, found, out)
    print_summary(summary, out)
    if problems:
        more = f"; {len(problems) - 1} more in {out / 'summary.json'}" if len(problems) > 1 else ""
        raise DataError(f"{index.root} is not whole: {problems[0]}{more}")


def check_shard(task: tuple[Path, Shard]) -> Findings:
    """Reads one shard to its last byte and pixel."""
    root, shard = task
    findings = Findings(shard=shard.file)
    try:
        scanned = scan_shard(root / shard.file, split=shard.split)
        if not len(shard.checksums):  # of an earlier version
            scanned = replace(scanned, checksums=[])
        differing = [name for name, value in plain(scanned).items() if value != plain(shard)[name]]
        if differing:
            findings.problems.append(f"shard {shard.file}: the index differs in {', '.join(differing)}")
    except DataError as error:
        findings.problems.append(str(error))
    if shard.count:
        reader = ShardReader(ShardIndex(root=root, name="", shards=(shard,)), split=shard.split)
        for number in range(len(reader)):
            check_sample(reader, number, findings)
    return findings


def plain(shard: Shard) -> dict[str, Any]:
    """The fields of a shard, in which equal ones compare equal, mapped or not."""
    columns = {name: np.asarray(getattr(shard, name)).tolist() for name in ("images", "records", "checksums")}
    return vars(shard) | columns | {"keys": [shard.key(row) for row in range(shard.count)]}


def check_sample(reader: ShardReader, number: int, findings: Findings) -> None:
    """Reads one pair."""
    from ldm.data.augment import names_a_side  # imports torch, seconds that --help does without

    try:
        record, data = reader.record(number), reader.image(number)
        height, width, _ = EncodedPicture(data).pixels().shape
    except DataError as error:
        findings.problems.append(str(error))
    except ValueError as error:
        key = reader.keys()[number]
        findings.problems.append(f"shard {findings.shard}: picture {key!r} can't be decoded ({error})")
    else:
        findings.sizes.append((width, height))
        findings.words += (len(text.split()) for text in record["texts"])
        findings.sided += sum(map(names_a_side, record["texts"]))
        findings.hashes[record["key"]] = hashlib.sha256(data).hexdigest()


def check_documents(index: ShardIndex) -> Iterable[str]:
    """What splits.json and report.json say otherwise than the index."""
    path = index.root / splits.FILE_NAME
    if path.is_file():
        try:
            assigned = splits.read_splits(path)
        except DataError as error:
            yield str(error)
            assigned = {}
        for shard in index.shards:
            keys = plain(shard)["keys"]
            if wrong := [key for key in keys if assigned.get(key) != shard.split]:
                yield f"{path}: {len(wrong)} pictures of {shard.file} are elsewhere there, {wrong[0]!r} first"
    written = read_report(index.root).get("written", {}).get("pictures")
    number = sum(shard.count for shard in index.shards)
    if written not in (None, number):
        yield f"{index.root}: the index has {number} pictures, the report {written}"


def summarise(index: ShardIndex, found: list[Findings]) -> dict:
    """The set in numbers."""
    keys: dict[str, list[str]] = {}
    for findings in found:
        for key, digest in findings.hashes.items():
            keys.setdefault(digest, []).append(key)
    return {
        "root": published(str(index.root)),
        "sha256": index.sha256,
        "shards": len(index.shards),
        "bytes": sum(shard.bytes for shard in index.shards),
        "pictures": {name: sum(shard.count for shard in index.split(name)) for name in index.splits},
        "captions": sum(len(findings.words) for findings in found),
        "captions_that_name_a_side": sum(findings.sided for findings in found),
        "same_bytes": sorted(sorted(own) for own in keys.values() if len(own) > 1),
    }


def draw(index: ShardIndex, found: list[Findings], out: Path) -> None:
    """The two figures, of what could be read."""
    sizes = [size for findings in found for size in findings.sizes]
    words = [number for findings in found for number in findings.words]
    if sizes:
        draw_histograms(sizes, words, out / "histograms.png")
    elif (out / "histograms.png").exists():  # of a set that could still be read
        discard(out / "histograms.png")
    readable = {key for findings in found for key in findings.hashes}
    specimens = []
    for name in index.splits:
        reader = ShardReader(index, split=name)
        rows = [row for row, key in enumerate(reader.keys()) if key in readable]
        for row in rows[:: max(1, -(-len(readable) // NUM_SPECIMENS))]:
            record = reader.record(row)
            texts = record["texts"]
            specimens.append(Specimen(reader.image(row), f"{name} {record['key']}", texts[row % len(texts)]))
    draw_sheet(specimens, out / "sheet.png")


def print_summary(summary: dict, out: Path) -> None:
    """The numbers, and the first of the problems."""
    splits_text = ", ".join(f"{number} {name}" for name, number in summary["pictures"].items())
    print(f"{summary['root']}: {splits_text}; {summary['captions']} captions, {summary['bytes']:,} bytes")
    print(f"  sha256 {summary['sha256']} over {summary['shards']} shards")
    print(f"  captions that name a side: {summary['captions_that_name_a_side']} (never mirrored)")
    print(f"  pictures that are the same byte for byte: {len(summary['same_bytes'])} groups")
    for problem in summary["problems"][:SHOWN]:
        print(f"  wrong: {problem}")
    print(f"  {len(summary['problems'])} problems; {out}/summary.json, sheet.png, histograms.png")


class Specimen(NamedTuple):
    """An encoded picture with the line above and the caption below it."""

    image: bytes
    title: str
    caption: str


def draw_sheet(specimens: Sequence[Specimen], path: Path) -> None:
    """Pictures row by row, each fitted into a square, with their captions."""
    cell_width, cell_height = SIDE + GAP, SIDE + (LINES + 1) * LINE_HEIGHT + GAP
    rows = -(-len(specimens) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell_width + GAP, max(1, rows) * cell_height + GAP), PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_SIZE)
    for number, specimen in enumerate(specimens):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * cell_width, GAP + row * cell_height
        picture = Image.fromarray(np.ascontiguousarray(EncodedPicture(specimen.image).pixels()))
        picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.LANCZOS)  # small ones grow
        pen.text((left, top), specimen.title[: LINE_WIDTH - 2], fill=FAINT, font=font)
        sheet.paste(picture, (left, top + LINE_HEIGHT))
        lines = textwrap.wrap(specimen.caption, LINE_WIDTH, max_lines=LINES, placeholder=" ...")
        for line, text in enumerate(lines):
            below = top + LINE_HEIGHT * (1 + line) + picture.height
            pen.text((left, below), text, fill=INK, font=font)
    write(path, encode_png(sheet))


def draw_histograms(sizes: Sequence[tuple[int, int]], words: Sequence[int], path: Path) -> None:
    """Picture sides, aspect ratios and caption lengths."""
    from matplotlib.figure import Figure

    width, height = np.array(sizes, dtype=np.float64).T
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    sides, aspects, lengths = figure.subplots(1, 3)
    sides.hist([width, height], bins=40, label=["width", "height"], histtype="stepfilled", alpha=0.6)
    sides.legend()
    sides.set(title=f"{len(sizes):,} pictures", xlabel="pixels", ylabel="pictures")
    aspects.hist(width / height, bins=60)
    aspects.set(title="aspect ratio", xlabel="width / height", ylabel="pictures")
    lengths.hist(words, bins=np.arange(max(words) + 2) - 0.5)
    title = f"{len(words):,} captions, {np.mean(words):.1f} words in the mean"
    lengths.set(title=title, xlabel="words", ylabel="captions")
    save_figure(figure, path, dpi=110)


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
