"""The list by which any other system can draw what a protocol measures."""

from collections.abc import Iterable
from pathlib import Path

from ldm import UserError
from ldm.evaluation.captions import CaptionSet, requests_for
from ldm.evaluation.reference_set import ReferenceSet
from ldm.evaluation.report import csv_text
from ldm.io.writing import write

COLUMNS = ("file", "caption", "seed")


def write_prompts(
    path: Path, gallery: ReferenceSet, sets: Iterable[CaptionSet], *, caption_seed: int, seed_base: int
) -> int:
    """Writes file name, caption and seed of every picture; returns how many there are.

    The names are those that a folder of pictures is searched for; the seeds are only a proposal.

    Raises:
        UserError: the file exists, or a set that the gallery can't give captions for.
    """
    if path.exists():
        raise UserError(f"list_prompts={path} exists already: name a new file, or remove it")
    rows = []
    for each in sets:
        captions = gallery.captions(each, seed=caption_seed)
        requests = requests_for(captions, samples=each.samples, seed_base=seed_base, folder=each.name)
        rows += [(f"{one.name}.png", one.prompt, one.seed) for one in requests]
    write(path, csv_text([COLUMNS, *rows]))
    return len(rows)
