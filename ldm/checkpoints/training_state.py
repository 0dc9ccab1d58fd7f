"""Checkpoints of a training: one exists only once its manifest does, whatever happens while saving.

Order of a save: a temporary folder beside the others; the checkpoint and its manifest with sha256 and size,
both on disk; then the folder's name, the pointer to it, and only then the oldest are removed. Only the
process that holds the run (`run.hold`) writes here.
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
from ldm.io.links import CannotWrite
from ldm.io.reading import hash_file, read_json
from ldm.io.writing import discard, make_folder, new_folder, sweep, write

STATE, MANIFEST, POINTER = "state.ckpt", "manifest.json", "newest"
NAME = re.compile(r"step=(\d{8})")
PARTS = {"state_dict", "loops", "global_step"}  # what Lightning resumes from


def save_state(root: Path, step: int, save: Callable[[Path], None], *, keep: int) -> Path:
    """Saves with `save(path)` under `root/step=<step>` and keeps the newest `keep` checkpoints up to it.

    A failure (a full disk, say) leaves the earlier checkpoints as they were and nothing else. A whole
    checkpoint of the same step stays: a run comes to a step with the same bits every time.

    Args:
        root: folder of all checkpoints of one run, in the run's own.
        step: optimizer steps done.
        save: makes a file, or a folder of files, at the path that it is given.
        keep: how many checkpoints stay.

    Returns:
        The folder.

    Raises:
        OSError: what stopped the save, with the folder and the room left on its disk.
    """
    final, run = root / f"step={step:08d}", root.parent
    try:
        make_folder(root, below=run)
        sweep(root, below=run)
        check_room(root)
        with new_folder(final, below=run, claim=partial(make_way, final)) as draft:
            save(draft / STATE)
            # after the checkpoint: `new_folder` puts both on disk before the folder gets its name
            (draft / MANIFEST).write_text(json.dumps({"step": step, "files": contents(draft)}))
        # Of the steps a checkpoint was once taken at, the pointer names the last: should that folder be lost,
        # the user learns of it. Nothing depends on it, so it may come after the folder's name.
        write(root / POINTER, f"{final.name}\n", below=run)
        prune(root, step, keep=keep)
    except OSError as error:
        raise _failure(error, root, step) from error
    return final


def check_room(root: Path) -> None:
    """Refuses a save for which the disk has less room than the checkpoint before it took.

    Raises:
        OSError: ENOSPC.
    """
    sizes = [sum(each.lstat().st_size for each in path.rglob("*")) for path in states(root)[-1:]]
    if sizes and shutil.disk_usage(root).free < sizes[0]:
        raise OSError(ENOSPC, f"No space left for the {sizes[0] / 1e6:.1f} MB of a checkpoint")


def contents(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and sha256 of every file in a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
        for path in files
    }


def make_way(final: Path) -> bool:
    """Removes a damaged checkpoint that has the name of a new one; whether the name is free."""
    if not os.path.lexists(final):
        return True
    if is_whole(final):
        return False
    discard(final, below=final.parents[1])
    return True


def prune(root: Path, step: int, *, keep: int) -> None:
    """Removes all but the newest `keep` of the checkpoints up to a step, the oldest first; links stay."""
    own = [folder for folder in states(root) if step_of(folder) <= step and not is_link(folder)]
    for folder in own[:-keep]:
        discard(folder, below=root.parent)


def is_link(folder: Path) -> bool:
    """Whether a checkpoint is a link, say to another disk; prints once that it stays."""
    if folder.is_symlink():
        print_once(f"{folder} is a link to {folder.readlink()}: it is left as it is")
    return folder.is_symlink()


@cache
def print_once(sentence: str) -> None:
    """Prints a line, unless this process has."""
    print(sentence, flush=True)


def newest_state(root: Path, *, usable: Callable[[Path], bool] = Path.exists) -> Path | None:
    """The newest whole checkpoint; prints one line on those that were passed over.

    Args:
        usable: whether a checkpoint whose manifest matches can be resumed from.
    """
    found, passed = None, []
    for folder in reversed(states(root)):
        if not is_whole(folder):
            passed.append(f"{folder.name} is damaged (its manifest does not match)")
        elif not usable(folder / STATE):
            passed.append(f"{folder.name} can't be loaded (it is no checkpoint of torch's)")
        else:
            found = folder
            break
    named = pointed_at(root)
    if named is not None and not named.exists() and (found is None or found.name < named.name):
        passed.insert(0, f"{named.name}, the last one that was saved, is gone")
    if passed:
        instead = "the training starts again" if found is None else f"going back to {found.name}"
        print(f"checkpoints in {root}: {', '.join(passed)}; {instead}", flush=True)
    return None if found is None else found / STATE


def discard_damaged(root: Path, *, after: int, usable: Callable[[Path], bool] = Path.exists) -> None:
    """Removes what a training that resumes from step `after` has passed over, so that it isn't counted.

    Args:
        usable: as for `newest_state`.
    """
    for folder in states(root):
        good = step_of(folder) <= after or (is_whole(folder) and usable(folder / STATE))
        if not good and not is_link(folder):
            discard(folder, below=root.parent)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is what its manifest says."""
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest.get("files", {STATE: manifest})  # version 0.1.0 wrote of one file
        return (
            any(Path(name).parts[:1] == (STATE,) for name in files)
            and manifest["step"] == step_of(folder)
            and all(
                (folder / name).stat().st_size == entry["bytes"]  # at once, where hashing takes seconds
                and hash_file(folder / name) == entry["sha256"]
                for name, entry in files.items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def states(root: Path) -> list[Path]:
    """Folders that have the name of a checkpoint, by step, whole or not."""
    return sorted(path for path in root.glob("step=*") if NAME.fullmatch(path.name))


def step_of(folder: Path) -> int:
    """The step that a checkpoint's folder is named by."""
    return int(folder.name.removeprefix("step="))


def pointed_at(root: Path) -> Path | None:
    """The checkpoint that was saved last, which may be gone since."""
    try:
        name = (root / POINTER).read_text().strip() if (root / POINTER).is_file() else ""
    except (OSError, ValueError):
        return None
    return root / name if NAME.fullmatch(name) else None


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds; its tensors stay on the disk until they are used.

    Raises:
        UserError: it can't be read, or is something else.
    """
    import torch  # seconds that saving and finding do without

    try:
        # weights_only: a run may come from a stranger, and a pickle can run anything
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except Exception as error:  # a forged or torn pickle may end in any of them
        raise UserError(f"{path} is no checkpoint of ours, or damaged ({type(error).__name__})") from error
    if not isinstance(held, dict) or not held.keys() >= PARTS:
        raise UserError(f"{path} is no checkpoint of ours: it lacks one of {', '.join(sorted(PARTS))}")
    return held


def is_readable(path: Path) -> bool:
    """Whether a training can resume from a checkpoint; one in shards is read later, by its ranks."""
    try:
        return path.is_dir() or bool(read_state(path))
    except UserError:
        return False


def _failure(error: OSError, root: Path, step: int) -> CannotWrite:
    """The same error in a sentence that a user can act on."""
    try:
        room = f"{shutil.disk_usage(root).free / 1e6:.0f} MB are free there"
    except OSError:
        room = "its disk does not answer"
    return CannotWrite(
        f"{root}: saving the checkpoint of step {step} stopped ({error.strerror or error}; {room}) and the"
        " earlier ones are as they were: make room, or the folder writable, and run the same command again"
    )
