"""Which picture belongs to which split: by published lists, or drawn; by picture, never by caption."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath

from ldm.data import DataError
from ldm.data.picture_files import OTHERS, SUFFIXES, is_hidden
from ldm.data.texts import numbered_lines, read_text
from ldm.io.reading import read_json
from ldm.io.writing import write

SPLITS = ("train", "val", "test")
SPLIT_FOLDERS = {  # as Hugging Face reads them
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
FILE_NAME = "splits.json"
ENDINGS = SUFFIXES + OTHERS  # a name without one of them may have dots
LIST_NAME = re.compile(r"(?:karpathy|flickr_?\d+k)?[._-]?(train|val|dev|test)(?:images)?\.txt", re.IGNORECASE)


def find_lists(folders: Iterable[Path]) -> list[Path]:
    """The split lists (`karpathy_train.txt`, `train.txt`, ...) of the first folder that has any.

    A `train.txt` beside a picture `train.jpg` is that picture's caption.
    """
    for folder in folders:
        names = {path.name for path in folder.iterdir() if not is_hidden(path.name)}
        lists = {name for name in names if LIST_NAME.fullmatch(name)}
        pictures = {Path(name).stem for name in names if name.lower().endswith(SUFFIXES)}
        if found := sorted(folder / name for name in lists if Path(name).stem not in pictures):
            return found
    return []


def read_splits(path: Path) -> dict[str, str]:
    """Key -> split, of a folder of lists, of one list's folder, or of a `splits.json` of ours.

    Raises DataError: no lists there, or a picture in two of them.
    """
    if path.suffix == ".json":
        return join_splits((split, keys, path) for split, keys in _read_json(path).items())
    folder = path if path.is_dir() else path.parent
    lists = find_lists([folder]) if folder.is_dir() else []
    if not lists:
        raise DataError(
            f"{path}: no split lists there; expected {FILE_NAME}, or karpathy_train.txt and the like"
        )
    return read_lists(lists)


def read_lists(lists: Iterable[Path]) -> dict[str, str]:
    """Key -> split, of lists with the name of one picture a line, extension or not."""
    named = ((LIST_NAME.fullmatch(path.name), path) for path in lists)
    return join_splits((found[1].lower(), _read_list(path), path) for found, path in named if found)


def _read_list(path: Path) -> list[str]:
    names = [line.strip() for _, line in numbered_lines(read_text(path))]
    if wrong := next((name for name in names if not _is_name(name)), None):
        raise DataError(f"{path}: {wrong[:60]!r} is no name of a picture; a split list has one name a line")
    return [key_of(name) for name in names]


def _is_name(line: str) -> bool:
    """Whether a line can be one name: nothing follows a picture's ending; without one it has no columns."""
    if line.lower().endswith(SUFFIXES):
        return not re.search(r"\.(?:jpe?g|png|webp)[\s|,]", line, re.IGNORECASE)
    return not re.search(r"[\t|,]|\.(?:jpe?g|png|webp)\b", line, re.IGNORECASE)


def _read_json(path: Path) -> dict[str, list[str]]:
    with suppress(OSError, ValueError, AttributeError, TypeError):
        document = read_json(path)
        if all(isinstance(key, str) for keys in document.values() for key in keys):
            return document
    raise DataError(
        f"{path} is no list of splits: expected {{split: [keys]}}, as {FILE_NAME} of a prepared set"
    )


def join_splits(lists: Iterable[tuple[str, list[str], object]]) -> dict[str, str]:
    """Key -> split, of (split, keys, where that was said).

    Raises DataError: an unknown split, or a picture in two.
    """
    splits: dict[str, str] = {}
    for named, keys, origin in lists:
        split = SPLIT_FOLDERS.get(named, named)
        if split not in SPLITS:
            raise DataError(f"{origin} names a split {split!r}: the splits are {', '.join(SPLITS)}")
        for key in keys:
            if splits.setdefault(key, split) != split:
                raise DataError(
                    f"{origin}: picture {key!r} is in {split} and in {splits[key]}; take it out of one"
                )
    return splits


def folder_splits(pictures: Iterable[str]) -> dict[str, str]:
    """Key -> split, if all pictures lie in folders named by splits, train and at least one other."""
    found = {key_of(name): SPLIT_FOLDERS.get(name.split("/")[0].lower(), "") for name in pictures}
    known = set(found.values())
    return found if "train" in known and len(known) > 1 and "" not in known else {}


def key_of(name: str) -> str:
    """The key of a picture by its name: without the extension, and what is no letter, digit, - or _ as _."""
    path = PurePosixPath(name)
    return re.sub(r"[^\w-]", "_", str(path.with_suffix("") if path.suffix.lower() in ENDINGS else path))


def draw_splits(keys: Iterable[str], *, val_share: float, test_share: float, seed: int) -> dict[str, str]:
    """Key -> split, in the order of a hash of seed and key: a picture more or less moves few others.

    A share above 0 gives at least one picture of two to val, and of three to test; train keeps at least one.
    """
    order = sorted(keys, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    spare = max(len(order) - 1, 0)
    num_val = min(_share(val_share, len(order), at_least=2), spare - int(test_share > 0 and spare >= 2))
    num_test = min(_share(test_share, len(order), at_least=3), spare - num_val)
    numbers = {"val": num_val, "test": num_test, "train": len(order) - num_val - num_test}
    drawn = [split for split, number in numbers.items() for _ in range(number)]
    return dict(zip(order, drawn, strict=True))


def _share(share: float, number: int, *, at_least: int) -> int:
    """Rounded, but one where that would be none and there are enough to spare it."""
    return max(round(share * number), int(share > 0 and number >= at_least))


def write_splits(root: Path, splits: Mapping[str, str]) -> str:
    """Writes `splits.json`, {split: [keys in order]}, and returns its sha256."""
    document = {name: sorted(key for key, split in splits.items() if split == name) for name in SPLITS}
    data = json.dumps(document, ensure_ascii=False, indent=0).encode()
    write(root / FILE_NAME, data)
    return hashlib.sha256(data).hexdigest()
