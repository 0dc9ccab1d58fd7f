"""The options that every preparation has, and what is refused of them."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_prep.command_line import option
from data_prep.pictures import PictureRules
from ldm import UserError
from ldm.randomness.seeds import check_seed

LISTED = ("listed", "karpathy")


@dataclass(kw_only=True)
class PreparationOptions:
    """Source and output, the rules for pictures, and how the splits are made."""

    source: str = option("", "Folder with the pictures: JPEG, PNG or WebP, at any depth.")
    out: str = option(
        "", "Folder for the shards; the same command run again resumes what was interrupted there."
    )
    resolution: int = option(
        256, "Shorter side in pixels: larger pictures are resized, smaller ones kept; 0 keeps all sizes."
    )
    min_side: int = option(32, "Pictures with a shorter side below this are left out.")
    max_aspect: float = option(5.0, "Pictures longer than this many times their shorter side are left out.")
    max_skip_share: float = option(
        0.001, "Stop, without an index, if a larger share of the pictures or captions is left out."
    )
    samples_per_shard: int = option(1024, "Pictures in a shard.")
    num_workers: int = option(
        os.cpu_count() or 1,
        "Worker processes, by default one a core; 0 uses this process.",
    )
    split: str = option("auto", "karpathy or listed: by lists; random: by seed; auto: by lists if there are.")
    split_from: str = option(
        "", "Folder of split lists (karpathy_train.txt, train.txt, ...), or splits.json of another set."
    )
    val_share: float = option(0.03, "Share of all pictures for validation, in a random split.")
    test_share: float = option(0.03, "Share of all pictures for testing, in a random split.")
    seed: int = option(0, "Seed of a random split.")

    def __post_init__(self) -> None:
        """Raises UserError for the first option that can't be."""
        shares, at_least, between = (
            [self.val_share, self.test_share],
            "must be at least 1",
            "must lie between",
        )
        rules = {
            "out= is missing: name the folder for the shards": bool(self.out),
            f"resolution={self.resolution} must be 0 (keep all sizes) or lie between 8 and 4096 pixels": (
                self.resolution == 0 or 8 <= self.resolution <= 4096
            ),
            f"min_side={self.min_side} {at_least}": self.min_side >= 1,
            f"max_aspect={self.max_aspect} {at_least}": self.max_aspect >= 1,
            f"max_skip_share={self.max_skip_share} {between} 0 and 1": 0 <= self.max_skip_share <= 1,
            f"samples_per_shard={self.samples_per_shard} {at_least}": self.samples_per_shard >= 1,
            f"num_workers={self.num_workers} {between} 0 and 256": 0 <= self.num_workers <= 256,
            f"split={self.split} is unknown: write auto, {', '.join(LISTED)} or random": (
                self.split in ("auto", *LISTED, "random")
            ),
            f"val_share={self.val_share} and test_share={self.test_share} must be at least 0 and leave some"
            " to train on": min(shares) >= 0 and sum(shares) < 1,
        }
        for sentence, holds in rules.items():
            if not holds:
                raise UserError(sentence)
        check_seed(self.seed)

    @property
    def rules(self) -> PictureRules:
        """What decides how pictures are stored."""
        return PictureRules(resolution=self.resolution, min_side=self.min_side, max_aspect=self.max_aspect)

    def source_folder(self) -> Path:
        """The source, if it is a folder. Raises UserError: it isn't."""
        if not self.source:
            raise UserError("source= is missing: name the folder of the pictures; --help lists the options")
        if not Path(self.source).is_dir():
            raise UserError(f"source={self.source} is no folder")
        return Path(self.source)
