"""Where training states lie: a state exists only once its manifest does, whatever happens while saving.

Order of a save: a temporary folder beside the others, the state, fsync, the manifest with its sha256, fsync,
rename, fsync of the parent, and only then the older states are pruned.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from ldm.data.index import hash_file

STATE, MANIFEST = "state.ckpt", "manifest.json"


def save_state(root: Path, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
    """Saves with `write(path)` under `root/step=<step>` and keeps the newest `keep` states.

    Returns the folder. A failure (a full disk, say) leaves the earlier states as they were and nothing else.

    Raises:
        OSError: what stopped the save, with the path.
    """
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"step={step:08d}"
    temporary = root / f".tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        write(temporary / STATE)
        fsync(temporary / STATE)
        manifest = {
            "step": step,
            "bytes": (temporary / STATE).stat().st_size,
            "sha256": hash_file(temporary / STATE),
        }
        (temporary / MANIFEST).write_text(json.dumps(manifest))
        fsync(temporary / MANIFEST)
        fsync(temporary)
        if final.exists():  # a torn or older state of the same step
            shutil.rmtree(final)
        temporary.rename(final)
        fsync(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    prune(root, keep=keep)
    return final


def prune(root: Path, *, keep: int) -> None:
    """Removes all but the newest `keep` states, and what interrupted saves left behind."""
    for folder in sorted(root.glob("step=*"))[:-keep]:
        shutil.rmtree(folder)
    for folder in root.glob(".tmp-*"):
        shutil.rmtree(folder, ignore_errors=True)


def newest_state(root: Path) -> Path | None:
    """File of the newest whole state; a damaged one is passed over, with a word about it."""
    for folder in sorted(root.glob("step=*"), reverse=True):
        if is_whole(folder):
            return folder / STATE
        print(f"checkpoint {folder} is damaged (its manifest does not match): going back to the one before")
    return None


def is_whole(folder: Path) -> bool:
    """Whether a state is what its manifest says."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        state = folder / STATE
        return state.stat().st_size == manifest["bytes"] and hash_file(state) == manifest["sha256"]
    except (OSError, ValueError, KeyError):
        return False


def fsync(path: Path) -> None:
    """Forces a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
