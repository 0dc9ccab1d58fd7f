"""What can be wrong with split lists."""

from functools import partial
from pathlib import Path

from benchmarks.faults.world import (
    KEPT,
    NUM_PICTURES,
    REFUSED,
    TOKENS,
    Answer,
    name_of,
    plain_json,
    run_flickr,
    token_file,
)
from benchmarks.harness import Fault

NAMES = [name_of(n) for n in range(NUM_PICTURES)]
TRAIN, VAL = "\n".join(NAMES[:-2]), "\n".join(NAMES[-2:])


def run_lists(files: dict[str, str | bytes], split_from: str, root: Path, _trials: int) -> Answer:
    """A Flickr30k folder with some split lists."""
    named = str(root / "source" / split_from) if split_from else ""
    files = {TOKENS: token_file()} | files
    return run_flickr(root, files, culprit="nobody", split="karpathy", split_from=named)


LISTS: dict[str, tuple[dict[str, str | bytes], str, str]] = {
    "no lists where lists are asked for": ({}, "", REFUSED),
    "picture in two lists": ({"train.txt": TRAIN, "val.txt": f"{VAL}\n{NAMES[0]}"}, "", REFUSED),
    "nothing to train on": ({"test.txt": TRAIN}, "", REFUSED),
    "list that is empty": ({"train.txt": "", "val.txt": VAL}, "", REFUSED),
    "list of sentences": ({"train.txt": "a dog runs\na cat sits"}, "", REFUSED),
    "list in UTF-16": ({"train.txt": TRAIN.encode("utf-16")}, "", REFUSED),
    "names that no picture has": ({"train.txt": f"{TRAIN}\nother.jpg", "val.txt": VAL}, "", KEPT),
    "names without extension": ({"train.txt": TRAIN.replace(".jpg", ""), "val.txt": VAL}, "", KEPT),
    "Windows line ends": ({"train.txt": TRAIN.replace("\n", "\r\n"), "val.txt": VAL}, "", KEPT),
    "json of another kind": ({"s.json": plain_json([1])}, "s.json", REFUSED),
    "json with an unknown split": ({"s.json": plain_json({"trian": ["p00"]})}, "s.json", REFUSED),
    "file that isn't there": ({}, "nowhere/s.json", REFUSED),
}

FAULTS = [
    Fault(area="splits", name=name, answer=answer, run=partial(run_lists, files, split_from))
    for name, (files, split_from, answer) in LISTS.items()
]
