"""Writes shards of the shipped emoji: `python -m data_prep.emoji [out=data/emoji] [val_share=0.1] [seed=0]`.

The set has 1,636 pictures of 64 px (Noto Color Emoji, on white) with four to six captions each (from Unicode
CLDR). The validation pictures are chosen by the seed; no picture has captions in both splits.
"""

import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_prep.command_line import command_line, option
from data_prep.making import write_shards
from ldm import UserError
from ldm.data import DataError
from ldm.data.index import ShardIndex
from ldm.data.shards import Sample
from ldm.randomness.seeds import check_seed

ASSETS = Path(__file__).parents[1] / "ldm" / "assets" / "emoji"
SIDE, COLUMNS = 64, 32  # the sheet holds tiles of SIDE px, row by row


@dataclass(kw_only=True)
class Options:
    """Where the shards go, the share of pictures held out for validation, and the seed that draws them."""

    out: str = option("data/emoji", "Folder for the shards and their index.")
    val_share: float = option(0.1, "Share of the pictures held out for validation.")
    seed: int = option(0, "Seed that decides which pictures are held out.")


def main(options: Options) -> None:
    """Writes the shards, index last; leaves a complete set alone.

    Raises:
        UserError: a share outside (0, 1).
        DataError: a complete set of other pictures or other splits is there.
    """
    if not 0 < options.val_share < 1:
        raise UserError(f"val_share={options.val_share} must lie between 0 and 1: it is the share held out")
    check_seed(options.seed)
    root = Path(options.out)
    captions = json.loads((ASSETS / "captions.json").read_text(encoding="utf-8"))
    held_out = draw_validation(list(captions), share=options.val_share, seed=options.seed)
    if (found := existing(root)) is not None:
        splits = {key: shard.split for shard in found.shards for key in shard.keys}
        if splits != {key: "val" if key in held_out else "train" for key in captions}:
            raise DataError(
                f"{root} holds a complete set of other pictures, or of another val_share or seed: "
                "choose another out= or remove it"
            )
        print(f"{root} is complete already: {len(splits)} pictures")
        return
    shards = []
    with tqdm(total=len(captions), desc="emoji shards", unit="picture") as bar:
        for split, keys in (("train", captions.keys() - held_out), ("val", held_out)):
            chosen = {key: entry for key, entry in captions.items() if key in keys}
            for shard in write_shards(read_samples(chosen), root=root, split=split):
                shards.append(shard)
                bar.update(shard.count)
    ShardIndex(root=root, name="emoji", shards=tuple(shards)).save()
    print(f"{root}: {len(captions) - len(held_out)} pictures to train on, {len(held_out)} held out")


def existing(root: Path) -> ShardIndex | None:
    """The set at `root` if it is there and whole; a broken one is prepared anew."""
    try:
        index = ShardIndex.load(root)
        index.verify()
    except DataError:
        return None
    return index


def draw_validation(keys: list[str], *, share: float, seed: int) -> set[str]:
    """The held-out pictures."""
    order = np.random.default_rng(seed).permutation(len(keys))
    number = min(max(round(share * len(keys)), 1), len(keys) - 1)
    return {keys[i] for i in order[:number]}


def read_samples(captions: dict[str, dict]) -> Iterator[Sample]:
    """Samples cut from the sheet, as PNG."""
    with Image.open(ASSETS / "sheet.webp") as sheet:
        pixels = sheet.convert("RGB")
    for key, entry in captions.items():
        row, column = divmod(entry["index"], COLUMNS)
        tile = pixels.crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))
        buffer = io.BytesIO()
        tile.save(buffer, format="PNG")
        yield Sample(
            key=key,
            image=buffer.getvalue(),
            extension="png",
            texts=entry["captions"],
            comment_nos=list(range(len(entry["captions"]))),
            metadata={"group": entry["group"], "subgroup": entry["subgroup"]},
        )


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
