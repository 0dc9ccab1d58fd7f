"""Weights cut into several files, which an index json lists by the tensors that they hold."""

import re
from pathlib import Path

from ldm import UserError
from ldm.io.fields import Fields
from ldm.io.reading import is_plain_name

NUMBERED = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


def is_index(path: Path) -> bool:
    """Whether a file is named as an index of shards: `model.safetensors.index.json`, `.index.fp16.json`."""
    return re.fullmatch(r".+\.index(\.\w+)?\.json", path.name) is not None


def shards(index: Path) -> dict[Path, set[str]]:
    """The files that an index lists, each with the names of its tensors.

    Raises:
        UserError: an index that is damaged or names a file outside of its folder, a shard that is missing,
            or one that lies there and is not listed.
    """
    table = Fields.read(index).values.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index}: weight_map must name the file of each tensor: fetch it again")
    listed = sorted(set(table.values()))
    outside = [name for name in listed if not is_plain_name(name)]
    if outside:
        raise UserError(f"{index} names {outside[0]!r}, which is no file of its folder: fetch it again")
    missing = [name for name in listed if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {_few(missing)}, of {len(listed)} files: fetch them")
    kinds = {match.groups() for match in map(NUMBERED.fullmatch, listed) if match}
    there = ((path.name, NUMBERED.fullmatch(path.name)) for path in sorted(index.parent.iterdir()))
    extra = [name for name, match in there if match and match.groups() in kinds and name not in listed]
    if extra:
        raise UserError(f"{index} does not list {_few(extra)}, which lies beside it: fetch the folder again")
    return {index.parent / name: {key for key, value in table.items() if value == name} for name in listed}


def check_names(index: Path, shard: Path, *, listed: set[str], found: set[str]) -> None:
    """Refuses a shard that holds other tensors than its index says.

    Raises:
        UserError: names that only one of both has.
    """
    for names, fault in ((listed - found, "lacks"), (found - listed, "holds also")):
        if names:
            raise UserError(f"{shard} {fault} {_few(sorted(names))}, unlike {index.name}: fetch it again")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
