"""Whether a training's files can be written where they go: writable folders, and disks with room for them."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule

from ldm import UserError
from ldm.data.latents import LatentData

MB = 2**20
STATES = 3  # checkpoints beside each other at most: two that are kept, and the one that is being written
COPIES = 4  # a parameter's share of a checkpoint: its value, its average and the optimizer's two moments
PROBE = 2**20  # bytes


@dataclass(frozen=True, kw_only=True)
class Need:
    """What is going to be written below a folder.

    Attributes:
        place: the folder as its option names it, such as `runs=runs`.
        num_bytes: about how much.
        what: the files, in words.
        remedy: what to type where it can't be written.
    """

    folder: Path
    place: str
    num_bytes: int
    what: str
    remedy: str

    @property
    def size(self) -> str:
        return f"{self.num_bytes / MB:.1f} MB of {self.what}"


def needs_of(stage: LightningModule, data: Any, runs: str) -> list[Need]:
    """Everything that a training writes, in the order in which it is written."""
    weights = sum(p.numel() * p.element_size() for p in stage.parameters())
    run = Need(
        folder=Path(runs),
        place=f"runs={runs}",
        num_bytes=(STATES * COPIES + 1) * weights,  # the one is the bundle
        what="checkpoints and bundle",
        remedy="name another folder with runs=",
    )
    return [*needs_of_cache(data), run]


def needs_of_cache(data: Any) -> list[Need]:
    """What is computed of a data set before the first step; nothing if all of it is there already."""
    if not isinstance(data, LatentData):
        return []
    missing = {kind: number for kind, number in data.missing_bytes().items() if number}
    if not missing:
        return []
    pictures = data.pictures.train
    root, cache = pictures.index.root, pictures.cache
    need = Need(
        folder=cache,
        place=f"data.root={root}" if cache == root else f"data.cache={cache}",
        num_bytes=sum(missing.values()),
        what=" and ".join(missing),
        remedy="name a folder for them with data.cache=<folder>, or compute them with python -m "
        f"data_prep.latents root={root} where it can be written",
    )
    return [need]


def check_needs(needs: Sequence[Need]) -> None:
    """Tries to write into each folder, and compares what is free on each disk with all that goes there.

    Raises:
        UserError: a folder that can't be written, or a disk with too little room.
    """
    left: dict[int, int] = {}  # bytes by disk
    for need in needs:
        folder = nearest_folder(need.folder)
        try:
            check_writable(folder)
            disk = folder.stat().st_dev
            free = left.setdefault(disk, shutil.disk_usage(folder).free)
        except OSError as error:
            raise UserError(
                f"{need.place} can't be written ({error.strerror}), and the training writes {need.size} "
                f"there: {need.remedy}"
            ) from error
        if need.num_bytes > free:
            raise UserError(
                f"{need.place} has {free / MB:.1f} MB free for it, and the training writes {need.size} "
                f"there: make room, or {need.remedy}"
            )
        left[disk] -= need.num_bytes


def nearest_folder(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def check_writable(folder: Path) -> None:
    """Writes a mebibyte that has no name into a folder: a quota can be full where a disk is not.

    Raises:
        OSError: it can't be written.
    """
    with tempfile.TemporaryFile(dir=folder) as stream:
        stream.write(b"\0" * PROBE)
        stream.flush()
        os.fsync(stream.fileno())
