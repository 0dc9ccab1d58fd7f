"""Foreign files of weights: their tensors are outlined first, and only read once they are known to fit.

A file is safetensors or torch's own (pickles.py); its contents decide, not its name. Weights that were cut
into several files are read by the index json that lists them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm import UserError
from ldm.exchange.keymap import unwrapped
from ldm.exchange.pickles import is_torch_file, read_entries, read_pickle
from ldm.io.fields import Fields
from ldm.io.reading import is_plain_name

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_TENSORS = 2**14  # in one file; whole pipelines have some thousands
INDEX = re.compile(r".+\.index(\.\w+)?\.json")  # such as model.safetensors.index.fp16.json
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file, or of the shards that an index json lists.

    Names are those of the network, without what a training wrapped around it: see `keymap.unwrapped`.

    Attributes:
        note: a sentence on why this file was taken; empty where there is nothing to say.
        renamed: tensors that are to be known by another name; one that has this name already is left out.
    """

    path: Path
    note: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise UserError(f"there are no weights at {self.path}: fetch the file or folder again")

    @cached_property
    def files(self) -> list[Path]:
        """The file itself, or the shards of an index."""
        return list(self._shards) or [self.path]

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """Every tensor's name, shape and dtype, on the meta device.

        Raises:
            UserError: a file that is damaged, forged, or no weights at all.
        """
        return {name: self._stored[stored] for stored, name in self.names.items()}

    @cached_property
    def names(self) -> dict[str, str]:
        """By the name in the file, the name without the wrappers of a training."""
        stored = self._stored
        try:
            names = unwrapped(stored)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        taken = set(self.renamed.values())
        return {stored: self.renamed.get(name, name) for stored, name in names.items() if name not in taken}

    @property
    def notes(self) -> list[str]:
        """`note`, and a sentence on names that are read without their wrappers."""
        changed = [f"{stored} is read as {name}" for stored, name in self.names.items() if stored != name]
        return [note for note in (self.note, *(f"{self.path.name}: {each}" for each in changed[:1])) if note]

    @cached_property
    def metadata(self) -> dict[str, str]:
        """The texts in a safetensors header; none in other files."""
        assert self._stored is not None  # a file that is damaged is refused first
        if self._shards or is_torch_file(self.path):
            return {}
        with _header(self.path) as file:
            return dict(file.metadata() or {})

    @cached_property
    def entries(self) -> dict[str, Any]:
        """What a torch file holds beside its weights: plain values such as `hyper_parameters`."""
        return read_entries(self.path) if is_torch_file(self.path) else {}

    def load(self, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors, mapped from the file where they can be; of those named in `only` what is there."""
        kept = {stored for stored, name in self.names.items() if only is None or name in only}
        return {self.names[name]: x for path in self.files for name, x in _tensors(path, kept).items()}

    @cached_property
    def _shards(self) -> dict[Path, set[str]]:
        return shards(self.path) if INDEX.fullmatch(self.path.name) else {}

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        """The outline under the names in the file."""
        if not self._shards:
            return _outline(self.path)
        whole: dict[str, Tensor] = {}
        for path, listed in self._shards.items():
            part = _outline(path)
            for names, fault in ((listed - part.keys(), "lacks"), (part.keys() - listed, "holds also")):
                if names:
                    some = _few(sorted(names))
                    raise UserError(f"{path} {fault} {some}, unlike {self.path.name}: fetch it again")
            whole |= part
        return whole


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
    kinds = {match.groups() for match in map(SHARD.fullmatch, listed) if match}
    there = ((path.name, SHARD.fullmatch(path.name)) for path in sorted(index.parent.iterdir()))
    extra = [name for name, match in there if match and match.groups() in kinds and name not in listed]
    if extra:
        raise UserError(f"{index} does not list {_few(extra)}, which lies beside it: fetch the folder again")
    return {index.parent / name: {key for key, value in table.items() if value == name} for name in listed}


def _header(path: Path) -> Any:
    return safe_open(path, framework="np")  # torch's would claim memory for the whole file


def _outline(path: Path) -> dict[str, Tensor]:
    if is_torch_file(path):
        return read_pickle(path, outline=True)
    try:
        with _header(path) as file:
            names = file.keys()
            if len(names) > MAX_TENSORS:
                raise UserError(
                    f"{path} has {len(names)} tensors, and no network here has more than {MAX_TENSORS}"
                )
            return {name: _meta(path, name, file.get_slice(name)) for name in names}
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is neither a whole safetensors file nor a zip of torch.save ({error}): fetch it again"
        ) from None


def _meta(path: Path, name: str, view: Any) -> Tensor:
    if view.get_dtype() not in DTYPES:
        raise UserError(f"{path}: tensor {name!r} is of type {view.get_dtype()}, expected floats")
    try:
        return torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
    except (RuntimeError, TypeError, OverflowError):
        raise UserError(f"{path}: tensor {name!r} has the shape {view.get_shape()}") from None


def _tensors(path: Path, kept: Collection[str]) -> dict[str, Tensor]:
    if is_torch_file(path):
        return {name: x for name, x in read_pickle(path, outline=False).items() if name in kept}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in kept}  # noqa: SIM118


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
