"""Training states as files that torch reads, where nothing in them is executed."""

from pathlib import Path
from typing import Any

import torch

from ldm import UserError

PARTS = {"state_dict", "loops", "global_step"}  # what Lightning resumes from


def read_state(path: Path) -> dict[str, Any]:
    """What a training state holds; its tensors stay on the disk until they are used.

    Raises:
        UserError: it can't be read, or is something else.
    """
    try:
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a forged or torn pickle may end in any of them
        raise UserError(
            f"{path} is no training state of ours, or damaged ({type(error).__name__})"
        ) from error
    if not isinstance(held, dict) or not held.keys() >= PARTS:
        raise UserError(f"{path} is no training state of ours: it lacks one of {', '.join(sorted(PARTS))}")
    return held


def is_readable(path: Path) -> bool:
    """Whether a training can resume from a state; one in shards is read by its ranks and taken on trust."""
    try:
        return path.is_dir() or bool(read_state(path))
    except ValueError:
        return False
