"""The options that every preparation has, and what is refused of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.pictures import PictureRules

LISTED = ("listed", "karpathy")
HELP = """
Where it goes, and what becomes of the pictures (all rules: data_prep/pictures.py, data_prep/texts.py):

  out=...                  folder for shards, index, splits.json and report.json
  resolution=256           shorter side in pixels; larger pictures are resized, smaller ones kept; 0 keeps all
  min_side=32              pictures whose shorter side is below are left out
  max_aspect=5             pictures longer than this many times their shorter side are left out
  max_skip_share=0.001     stop, without an index, if more pictures or captions than this are left out
  samples_per_shard=1024   pictures in a shard
  num_workers=<cores>      processes; 0: this one. The shards don't depend on it

Which picture is in which split:

  split=auto               karpathy or listed: by lists; random: drawn; auto: by lists if there are any
  split_from=...           folder of lists (karpathy_train.txt, train.txt, ...), or splits.json of another set
  val_share=0.03 test_share=0.03 seed=0     for a drawn split: shares of all pictures, and the draw

What was stopped, by whatever, goes on when the same command is run again; a complete set is left alone.
"""


@dataclass(kw_only=True)
class PreparationOptions:
    """What the help above lists."""

    source: str = ""
    out: str = ""
    resolution: int = 256
    min_side: int = 32
    max_aspect: float = 5.0
    max_skip_share: float = 0.001
    samples_per_shard: int = 1024
    num_workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    split: str = "auto"
    split_from: str = ""
    val_share: float = 0.03
    test_share: float = 0.03
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError for the first option that can't be."""
        if not self.out:
            raise ValueError("out= is missing: name the folder for the shards")
        if self.resolution != 0 and not 8 <= self.resolution <= 4096:
            raise ValueError(
                f"resolution={self.resolution} must be 0 (keep all sizes) or lie between 8 and 4096 pixels"
            )
        if self.min_side < 1 or not self.max_aspect >= 1:
            raise ValueError(
                f"min_side={self.min_side} and max_aspect={self.max_aspect} must be at least 1 each"
            )
        if not 0 <= self.max_skip_share <= 1:
            raise ValueError(f"max_skip_share={self.max_skip_share} must lie between 0 and 1")
        if self.samples_per_shard < 1 or not 0 <= self.num_workers <= 256:
            raise ValueError(
                f"samples_per_shard={self.samples_per_shard} must be at least 1 and"
                f" num_workers={self.num_workers} lie between 0 and 256"
            )
        self._check_split()

    def _check_split(self) -> None:
        if self.split not in ("auto", *LISTED, "random"):
            raise ValueError(f"split={self.split} is unknown: write auto, {', '.join(LISTED)} or random")
        shares = (self.val_share, self.test_share)
        if not (min(shares) >= 0 and sum(shares) < 1):
            raise ValueError(
                f"val_share={self.val_share} and test_share={self.test_share} must be at least 0"
                " and leave some to train on"
            )

    @property
    def rules(self) -> PictureRules:
        return PictureRules(resolution=self.resolution, min_side=self.min_side, max_aspect=self.max_aspect)

    def source_folder(self) -> Path:
        """The source, if it is a folder.

        Raises:
            ValueError: it isn't.
        """
        if not self.source:
            raise ValueError("source= is missing: name the folder of the pictures; --help lists the options")
        if not Path(self.source).is_dir():
            raise ValueError(f"source={self.source} is no folder")
        return Path(self.source)
