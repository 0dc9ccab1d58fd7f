"""Checkpoints of a training, each of which exists whole or not at all.

Order of a save: a temporary folder; the checkpoint and its manifest with sha256 and size, both on disk; the
folder's name; the pointer to it; and only then the oldest are removed. Only the process that holds the run
(`run.hold`) writes here.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from errno import ENOSPC
from functools import cache, partial
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.io.reading import hash_file, read_json
from ldm.io.writing import CannotWrite, discard, make_folder, new_folder, sweep, write

STATE, MANIFEST, POINTER = "state.ckpt", "manifest.json", "newest"
NAME = re.compile(r"step=(\d{8})")
PARTS = {"state_dict", "loops", "global_step"}  # what Lightning resumes from


def save_state(root: Path, step: int, save: Callable[[Path], None], *, keep: int) -> Path:
    """Saves a checkpoint to `root/step=<step>`, keeps the newest `keep` up to it, and returns its folder.

    A whole checkpoint of the same step stays, since a run reaches a step with the same bits every time. If
    the save fails, the earlier checkpoints are unchanged and CannotWrite says why, with the room on the disk.
    `save` makes a file, or a folder of files, at the path that it is given.
    """
    final, run = root / f"step={step:08d}", root.parent
    try:
        make_folder(root, below=run)
        sweep(root, below=run)
        # refused before the work if the disk has less room than the newest checkpoint takes
        sizes = [sum(each.lstat().st_size for each in path.rglob("*")) for path in states(root)[-1:]]
        if sizes and shutil.disk_usage(root).free < sizes[0]:
            raise OSError(ENOSPC, f"No space left for the {sizes[0] / 1e6:.1f} MB of a checkpoint")
        with new_folder(final, below=run, claim=partial(_make_way, final)) as draft:
            save(draft / STATE)
            # the manifest is no proof yet: `new_folder` puts both on disk before the folder gets its name
            (draft / MANIFEST).write_text(json.dumps({"step": step, "files": contents(draft)}))
        # The pointer only lets the loss of the newest checkpoint be noticed: it may come after the folder.
        write(root / POINTER, f"{final.name}\n", below=run)
        own = [folder for folder in states(root) if step_of(folder) <= step and not _is_link(folder)]
        for folder in own[:-keep]:
            discard(folder, below=run)
    except OSError as error:
        raise _failure(error, root, step) from error
    return final


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in files
    }


def _make_way(final: Path) -> bool:
    """Removes a damaged checkpoint that has the name of a new one; returns whether the name is free."""
    if not os.path.lexists(final):
        return True
    if is_whole(final):
        return False
    discard(final, below=final.parents[1])
    return True


def _is_link(folder: Path) -> bool:
    """Whether a checkpoint is a link, perhaps to another disk; prints once that it stays."""
    if folder.is_symlink():
        _print_once(f"{folder} is a link to {folder.readlink()}: it is left as it is")
    return folder.is_symlink()


@cache  # every save comes here
def _print_once(sentence: str) -> None:
    print(sentence, flush=True)


def newest_state(root: Path, *, usable: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The newest whole checkpoint that is `usable`, or None; prints one line about newer ones that aren't."""
    found, passed = None, []
    for folder in reversed(states(root)):
        if not is_whole(folder):
            passed.append(f"{folder.name} is damaged (its manifest does not match)")
        elif not usable(folder / STATE):
            passed.append(f"{folder.name} can't be loaded (torch did not write it)")
        else:
            found = folder
            break
    named = _pointed_at(root)
    if named is not None and not named.exists() and (found is None or found.name < named.name):
        passed.insert(0, f"{named.name}, the last one that was saved, is gone")
    if passed:
        instead = "the training starts again" if found is None else f"going back to {found.name}"
        print(f"checkpoints in {root}: {', '.join(passed)}; {instead}", flush=True)
    return None if found is None else found / STATE


def discard_damaged(root: Path, *, after: int, usable: Callable[[Path], bool] = Path.exists) -> None:
    """Removes damaged checkpoints after the step that a training resumes from, so that none is counted."""
    for folder in states(root):
        good = step_of(folder) <= after or (is_whole(folder) and usable(folder / STATE))
        if not good and not _is_link(folder):
            discard(folder, below=root.parent)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint has the files that its manifest lists."""
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest.get("files", {STATE: manifest})  # the form of version 0.1.0, for one file
        return (
            any(Path(name).parts[:1] == (STATE,) for name in files)
            and manifest["step"] == step_of(folder)
            and all(
                (folder / name).stat().st_size == entry["bytes"]  # first, since hashing takes seconds
                and hash_file(folder / name) == entry["sha256"]
                for name, entry in files.items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def states(root: Path) -> list[Path]:
    """Folders with the name of a checkpoint, whole or not, by step."""
    return sorted(path for path in root.glob("step=*") if NAME.fullmatch(path.name))


def step_of(folder: Path) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(folder.name.removeprefix("step="))


def _pointed_at(root: Path) -> Path | None:
    """The checkpoint that was saved last, which may be lost."""
    try:
        name = (root / POINTER).read_text().strip() if (root / POINTER).is_file() else ""
    except (OSError, ValueError):
        return None
    return root / name if NAME.fullmatch(name) else None


def read_state(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, whose tensors are read when they are used; UserError if it is none."""
    import torch  # takes seconds that saving and finding checkpoints do not need

    try:
        # weights_only: a run may come from a stranger, and a pickle can execute anything
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a forged or torn pickle may raise anything
        raise UserError(f"{path} is no checkpoint of ours, or damaged ({type(error).__name__})") from error
    if not isinstance(held, dict) or not held.keys() >= PARTS:
        raise UserError(f"{path} is no checkpoint of ours: it lacks one of {', '.join(sorted(PARTS))}")
    return held


def is_readable(path: Path) -> bool:
    """Whether a training can resume from a checkpoint; the ranks check a sharded one when they load it."""
    try:
        return path.is_dir() or bool(read_state(path))
    except UserError:
        return False


def _failure(error: OSError, root: Path, step: int) -> CannotWrite:
    """The error with its place, the room on the disk, and what to do."""
    try:
        room = f"{shutil.disk_usage(root).free / 1e6:.0f} MB are free there"
    except OSError:
        room = "its disk does not answer"
    return CannotWrite(
        f"{root}: saving the checkpoint of step {step} failed ({error.strerror or error}; {room}); earlier"
        " ones are unchanged: make room, or make the folder writable, and run the same command again"
    )
