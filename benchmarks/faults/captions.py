"""What can be wrong with captions and the files that hold them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.faults.world import (
    HEALED,
    KEPT,
    LEFT_OUT,
    NUM_PICTURES,
    REFUSED,
    TOKENS,
    Answer,
    caption,
    name_of,
    plain_json,
    run_flickr,
    run_preparation,
    token_file,
    write_pictures,
)
from benchmarks.harness import Fault
from data_prep import folder
from data_prep.caption_files import Columns
from data_prep.folder import listed
from data_prep.pairing import Place
from ldm.data.picture_files import files_under

VICTIM = 3
NAME = name_of(VICTIM)
ROW = f"{NAME}#1\t{caption(VICTIM, 1)}"
BARS = "results.csv"

Edit = Callable[[str], str | bytes]


def run_edited(file: str, edit: Edit, culprit: str, root: Path, _trials: int) -> Answer:
    """A Flickr30k folder whose caption file has been edited."""
    return run_flickr(root, {file: edit(token_file() if file == TOKENS else bar_file())}, culprit=culprit)


def run_folder(file: str, content: str, culprit: str, root: Path, _trials: int) -> Answer:
    """A folder of pictures with a caption file."""
    source = root / "source"
    write_pictures(source)
    (root / file).write_text(content)
    options = folder.Options(
        source=str(source),
        captions=str(root / file),
        out=str(root / "out"),
        max_skip_share=1.0,
        num_workers=0,
    )
    pictures = {name: Place.of(source / name) for name in files_under(source, (".jpg",))}
    return run_preparation(lambda: listed(root / file, source, pictures, Columns()), options, culprit=culprit)


def bar_file() -> str:
    rows = [f"{name_of(n)}| {order}| {caption(n, order)}" for n in range(NUM_PICTURES) for order in (0, 1)]
    return "\n".join(["image_name| comment_number| comment", *rows, ""])


def json_lines(victim: object) -> str:
    """One line a picture; the victim's captions are whatever is given."""
    texts = {name_of(n): [caption(n)] for n in range(NUM_PICTURES)} | {NAME: victim}
    return "".join(plain_json({"image": name, "caption": own}) + "\n" for name, own in texts.items())


def csv_file(victim: str) -> str:
    rows = [victim if n == VICTIM else f"{name_of(n)},{caption(n)}" for n in range(NUM_PICTURES)]
    return "\n".join(["image,caption", *rows, ""])


def put(text: str) -> Edit:
    """The second caption of the victim as something else."""
    return lambda whole: whole.replace(ROW, f"{NAME}#1\t{text}")


def put_bytes(data: bytes) -> Edit:
    return lambda whole: whole.encode().replace(ROW.encode(), f"{NAME}#1\t".encode() + data)


def bars(row: str) -> Edit:
    return lambda whole: whole.replace(f"{NAME}| 1| {caption(VICTIM, 1)}", row)


CAPTION = f"{NAME}#1"
FLICKR: dict[str, tuple[str, Edit, str, str]] = {
    "empty caption": (TOKENS, put(""), CAPTION, LEFT_OUT),
    "caption of blanks": (TOKENS, put(" \t  "), CAPTION, LEFT_OUT),
    "byte that is not UTF-8 (0x92)": (TOKENS, put_bytes(b"a dog\x92s bone"), CAPTION, LEFT_OUT),
    "NUL in a caption": (TOKENS, put("a\0dog"), CAPTION, LEFT_OUT),
    "control characters in a caption": (TOKENS, put("picture 3\x1b[31m seen \x07"), CAPTION, HEALED),
    "caption of 10,000 words": (TOKENS, put("picture 3 " + "dog " * 10_000), CAPTION, HEALED),
    "${...} in a caption": (TOKENS, put("picture 3 ${oc.env:HOME} %s {0}"), CAPTION, KEPT),
    "<|endoftext|> in a caption": (TOKENS, put("picture 3 <|endoftext|>"), CAPTION, KEPT),
    "emoji, Chinese, Arabic": (TOKENS, put("picture 3 😀 狗 كلب é"), CAPTION, KEPT),
    "row twice": (TOKENS, lambda whole: whole + ROW + "\n", CAPTION, LEFT_OUT),
    "row without a tab": (TOKENS, lambda whole: whole + "p03.jpg#2 no tab\n", f"{TOKENS}:", LEFT_OUT),
    "caption of a picture that isn't there": (
        TOKENS,
        lambda whole: whole + "p99.jpg#0\tno picture\n",
        "p99.jpg",
        LEFT_OUT,
    ),
    "name with another case": (TOKENS, lambda whole: whole.replace(NAME, "P03.JPG"), "P03.JPG", LEFT_OUT),
    "name that leads outside": (
        TOKENS,
        lambda whole: whole + "../../etc/passwd#0\tpicture 3\n",
        "passwd",
        LEFT_OUT,
    ),
    "picture without captions": (
        TOKENS,
        lambda whole: "".join(row for row in whole.splitlines(True) if not row.startswith(NAME)),
        NAME,
        LEFT_OUT,
    ),
    "file with a byte order mark": (TOKENS, lambda whole: b"\xef\xbb\xbf" + whole.encode(), CAPTION, KEPT),
    "file with Windows line ends": (TOKENS, lambda whole: whole.replace("\n", "\r\n"), CAPTION, KEPT),
    "file in UTF-16": (TOKENS, lambda whole: whole.encode("utf-16"), CAPTION, REFUSED),
    "file that is empty": (TOKENS, lambda whole: "", CAPTION, REFUSED),
    "file that is a picture": (TOKENS, lambda whole: b"\x89PNG\r\n\x1a\n" + bytes(99), CAPTION, REFUSED),
    "second bar missing": (BARS, bars(f"{NAME}| 1   {caption(VICTIM, 1)}"), f"{BARS}:", HEALED),
    "both bars missing": (BARS, bars(f"{NAME} 1 {caption(VICTIM, 1)}"), f"{BARS}:", LEFT_OUT),
    "bars, commas and quotes in a caption": (
        BARS,
        bars(f'{NAME}| 1| picture 3, "seen | twice'),
        f"{BARS}:",
        KEPT,
    ),
    "header missing": (BARS, lambda whole: whole.split("\n", 1)[1], CAPTION, KEPT),
}
FOLDER: dict[str, tuple[str, str, str, str]] = {
    "csv without the column": (
        "c.csv",
        csv_file(f"{NAME},{caption(3)}").replace("caption\n", "words\n"),
        NAME,
        REFUSED,
    ),
    "csv row with a cell too few": ("c.csv", csv_file(NAME), "c.csv:", LEFT_OUT),
    "csv row with a cell too many": ("c.csv", csv_file(f"{NAME},picture 3, twice"), "c.csv:", LEFT_OUT),
    "csv quote that never ends": ("c.csv", csv_file(f'{NAME},"{caption(3)}'), NAME, REFUSED),
    "json null": ("c.jsonl", json_lines(None), NAME, LEFT_OUT),
    "json number": ("c.jsonl", json_lines(7), NAME, LEFT_OUT),
    "json list in a list": ("c.jsonl", json_lines([["picture 3"]]), NAME, LEFT_OUT),
    "json empty list": ("c.jsonl", json_lines([]), NAME, LEFT_OUT),
    "json half a surrogate": (
        "c.jsonl",
        json_lines([caption(3)]).replace(caption(3), "\\ud83d"),
        NAME,
        LEFT_OUT,
    ),
    "json line cut": ("c.jsonl", json_lines(caption(3)) + '{"image": "p04', "c.jsonl:", LEFT_OUT),
    "json 100,000 brackets deep": ("c.jsonl", json_lines(caption(3)) + "[" * 100_000, "c.jsonl:", LEFT_OUT),
    "kind of file unknown": ("c.xlsx", "PK", NAME, REFUSED),
}

FAULTS = [
    *(
        Fault(area="captions", name=name, answer=answer, run=partial(run_edited, file, edit, culprit))
        for name, (file, edit, culprit, answer) in FLICKR.items()
    ),
    *(
        Fault(area="captions", name=name, answer=answer, run=partial(run_folder, file, content, culprit))
        for name, (file, content, culprit, answer) in FOLDER.items()
    ),
]
