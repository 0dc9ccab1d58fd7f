"""A small set in which every pair proves itself: picture n has one grey, and its caption names n."""

import contextlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.harness import Verdict
from data_prep import flickr30k
from data_prep.preparation import prepare
from data_prep.reports import read_report
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import PictureDataset

NUM_PICTURES, SIDE = 16, 40
TOKENS = "results_20130124.token"
REFUSED, LEFT_OUT, HEALED, KEPT = "refused", "left out, counted", "healed, counted", "kept as it is"


@dataclass(frozen=True)
class Answer(Verdict):
    """What came of damage: the answer, and pairs that were wrong without a word."""

    answer: str
    wrong_pairs: int = 0


def grey(number: int) -> int:
    """The grey of a picture; neighbours are further apart than JPEG's error."""
    return 255 - 14 * number


def name_of(number: int) -> str:
    return f"p{number:02d}.jpg"


def flat(number: int, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Picture n, in a mode."""
    return Image.new("L", size, grey(number)).convert(mode)


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    """A picture's file."""
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, **options)
    return buffer.getvalue()


def write_pictures(folder: Path) -> None:
    """All pictures, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(NUM_PICTURES):
        (folder / name_of(number)).write_bytes(encoded(flat(number), "JPEG", quality=95))


def caption(number: int, order: int = 0) -> str:
    return f"picture {number} seen {order}"


def token_file() -> str:
    """Two captions of each picture, in the distribution's form."""
    rows = [(n, order) for n in range(NUM_PICTURES) for order in (0, 1)]
    return "".join(f"{name_of(n)}#{order}\t{caption(n, order)}\n" for n, order in rows)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the screen."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def wrong_pairs(root: Path) -> int:
    """Samples of a set whose picture isn't the one that each of its captions names."""
    wrong = 0
    for split in {shard.split for shard in ShardIndex.load(root).shards if shard.count}:
        pictures = PictureDataset(str(root), split=split, size=8)
        for number in range(len(pictures)):
            shown = float(np.median(pictures.image(number).numpy()))
            named = [
                int(found[1])
                for text in pictures.captions(number)
                if (found := re.match(r"picture (\d+)\b", text))
            ]
            wrong += any(abs(grey(n) - shown) > 6 for n in named)
    return wrong


def run_flickr(root: Path, files: dict[str, str | bytes], *, culprit: str, **options: Any) -> Answer:
    """Prepares a Flickr30k folder of all pictures, with these files among or in place of them."""
    source = root / "source"
    write_pictures(source)
    for name, content in files.items():
        (source / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = {"max_skip_share": 1.0, "num_workers": 0} | options
    chosen = flickr30k.Options(source=str(source), out=str(root / "out"), **settings)
    return run_preparation(lambda: flickr30k.collect(source), chosen, culprit=culprit)


def run_preparation(collect: Callable[[], object], options: object, *, culprit: str) -> Answer:
    """Prepares; tells from the report, or the refusal, what became of the culprit."""
    try:
        with quiet():
            prepare(collect(), options, name="faults")
    except ValueError as error:
        return Answer(REFUSED, says=str(error))
    root = Path(options.out)
    report = read_report(root)
    answer, says = KEPT, ""
    for title, meaning in (
        ("healed", HEALED),
        ("captions_left_out", LEFT_OUT),
        ("pictures_left_out", LEFT_OUT),
    ):
        for reason, names in report[title].items():
            if any(culprit in name for name in names):
                answer, says = meaning, reason
    if answer is KEPT and (kinds := report["converted"].keys() - {"stored byte for byte"}):
        answer, says = HEALED, ", ".join(sorted(kinds))
    return Answer(answer, wrong_pairs(root), says=says)


def read_whole(root: Path) -> Answer:
    """Reads a set as training does: a refusal by DataError alone, or all pairs."""
    try:
        return Answer(KEPT, wrong_pairs(root))
    except DataError as error:
        return Answer(REFUSED, says=str(error))


def several(verdicts: list[Answer]) -> Answer:
    """Many trials as one: the answers that came, in the order of their number."""
    answers = [verdict.answer for verdict in verdicts]
    kinds = sorted(set(answers), key=lambda kind: -answers.count(kind))
    wrong = sum(verdict.wrong_pairs for verdict in verdicts)
    return Answer(" or ".join(kinds), wrong, tries=len(verdicts), says=verdicts[-1].says)


def plain_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
