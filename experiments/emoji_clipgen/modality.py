"""CLIP-GEN given each picture's own feature in place of its caption's.

    python -m ldm.evaluate list_prompts=prompts.csv
    python -m experiments.emoji_clipgen.modality prompts=prompts.csv out=runs/evaluation/own_features
    python -m ldm.evaluate pictures=runs/evaluation/own_features out=runs/evaluation/emoji_clipgen_own

CLIP-GEN is trained on features of pictures and sampled with features of texts. What it loses between the two
is the modality gap. This command generates the pictures of a protocol with the features of the real pictures
and the same seeds, so that the same measures tell it.
"""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.data.shards import PictureDataset
from ldm.generators.autoregressive import CodeGenerator, open_autoregressive
from ldm.io.pictures import save_picture
from ldm.models.autoregressive import PrefixTransformer

SPLITS = ("train", "val")
BATCH = 16


@dataclass(kw_only=True)
class Options:
    """Which model generates what, and where the pictures go."""

    prompts: str = option("prompts.csv", "What `ldm.evaluate list_prompts=` wrote.")
    bundle: str = option("runs/emoji_clipgen", "Bundle, run or experiment of CLIP-GEN.")
    data: str = option("data/emoji", "The data set whose pictures give the features.")
    out: str = option("runs/evaluation/own_features", "Folder of the pictures; it must not exist.")


@dataclass(frozen=True, kw_only=True)
class OwnFeatures(CodeGenerator):
    """CLIP-GEN whose prompts are keys of pictures, which it reads by their own features."""

    pictures: dict[str, Tensor]  # uint8, 3 h w, by key

    def conditions(self, texts: Sequence[str]) -> Tensor:
        """Features of the pictures with these keys: float32, b e."""
        return self.clip.embed_images(torch.stack([self.pictures[key] for key in texts]))


def main(options: Options) -> None:
    """Writes the pictures.

    Raises:
        UserError: the bundle is none of CLIP-GEN, the data set lacks a picture, or `out` exists.
    """
    out = Path(options.out)
    if out.exists():
        raise UserError(f"{out} exists: name another folder with out=")
    generator = open_autoregressive(Bundle.open(options.bundle))
    if not isinstance(generator.net, PrefixTransformer):
        raise UserError(f"{options.bundle} reads no features of CLIP: name a bundle of CLIP-GEN")
    with Path(options.prompts).open(newline="") as file:
        rows = list(csv.DictReader(file))
    pictures = pictures_of(options.data, size=generator.size)
    keys = [key_of(row["file"], pictures) for row in rows]
    own = OwnFeatures(**vars(generator), pictures=pictures)
    for start in range(0, len(rows), BATCH):
        chunk = slice(start, start + BATCH)
        made = own(keys[chunk], [int(row["seed"]) for row in rows[chunk]])
        for row, picture in zip(rows[chunk], made, strict=True):
            (out / row["file"]).parent.mkdir(parents=True, exist_ok=True)
            save_picture(picture, out / row["file"], texts={})
        print(f"\r{min(start + BATCH, len(rows))} of {len(rows)} pictures", end="", file=sys.stderr)
    print(f"\n{out}: {len(rows)} pictures")


def pictures_of(root: str, *, size: int) -> dict[str, Tensor]:
    """All pictures of a data set by key: uint8, 3 h w."""
    splits = [PictureDataset(root, split=split, size=size) for split in SPLITS]
    return {key: each.image(number) for each in splits for number, key in enumerate(each.keys())}


def key_of(file: str, pictures: dict[str, Tensor]) -> str:
    """The key in a file's name, which may end in a sample's number; raises UserError for an unknown one."""
    name = Path(file).stem
    for key in (name, name.rpartition("_")[0]):
        if key in pictures:
            return key
    raise UserError(
        f"{file}: the data set has no picture {name}: name the data that the prompts were listed for"
    )


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
