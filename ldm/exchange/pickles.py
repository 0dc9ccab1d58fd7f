"""Weights in torch's own files: zip archives of a pickle, read with `weights_only=True` and in no other way.

Three kinds hold weights that people publish: a state dict, a training checkpoint with one under `state_dict`
(CompVis, open_clip), and OpenAI's TorchScript archives. The last are copied without their code, so that what
is left is a pickle of tensors in which every class is an inert stand-in.
"""

import re
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ldm import UserError
from ldm.io.writing import full_disk_told

SCRIPTED = "__torch__."  # how TorchScript names the classes of a module tree
READ = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/\d+)")  # the entries that torch.load reads
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"  # a key in CompVis' checkpoints


class Inert:
    """Stands for a class of a foreign pickle: takes any arguments, keeps any state, does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def is_torch_file(path: Path) -> bool:
    """Whether a file is a zip archive, as torch has written since 1.6."""
    return zipfile.is_zipfile(path)


def read_pickle(path: Path, *, outline: bool) -> dict[str, Tensor]:
    """The named tensors of a torch file.

    Args:
        outline: shapes and dtypes alone, on the meta device; no weight is read.

    Raises:
        UserError: a pickle that names anything but tensors, a compressed or damaged archive, no tensors in
            it, or tensors that claim more bytes than the file has.
    """
    content, scripted = _content(path, outline=outline)
    tree = scripted and isinstance(content, Inert)
    tensors = dict(scripted_tensors(content)) if tree else _state_dict(content, path)
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    if claimed > path.stat().st_size:
        raise UserError(f"{path} is forged: its tensors claim {claimed} bytes, more than the file has")
    return tensors


def read_entries(path: Path) -> dict[str, Any]:
    """The entries of a torch file beside its weights, such as `hyper_parameters`: plain values alone.

    Raises:
        UserError: as `read_pickle`.
    """
    content, _ = _content(path, outline=True)
    return {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}


def _content(path: Path, *, outline: bool) -> tuple[Any, bool]:
    """What the pickle of an archive holds, and whether the archive is TorchScript's."""
    _check_archive(path)
    with _without_code(path) as (archive, scripted):
        return _load(path, archive, scripted=scripted, outline=outline), scripted


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            read = [info for info in archive.infolist() if READ.fullmatch(info.filename)]
            compressed = [info.filename for info in read if info.compress_type]
            size = sum(info.file_size for info in read)
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole torch file ({error}): fetch it again") from None
    if compressed:
        raise UserError(f"{path} is not a file of torch.save: its entry {compressed[0]} is compressed")
    if size > path.stat().st_size:
        raise UserError(f"{path} is forged: its entries claim {size} bytes, more than the file has")


@contextmanager
def _without_code(path: Path) -> Iterator[tuple[Path, bool]]:
    """The archive to read, and whether it is a copy of a TorchScript one without code and constants."""
    with zipfile.ZipFile(path) as source:
        names = source.namelist()
    if not any(name.endswith("/constants.pkl") for name in names):
        yield path, False
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pt"
        _copy(path, copy, filter(READ.fullmatch, names))
        yield copy, True


def _copy(path: Path, copy: Path, names: Iterable[str]) -> None:
    try:
        with full_disk_told(copy), zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
            for name in names:
                with source.open(name) as entry, target.open(name, "w", force_zip64=True) as kept:
                    shutil.copyfileobj(entry, kept)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is not a whole torch file ({error}): fetch it again") from None


def _load(path: Path, archive: Path, *, scripted: bool, outline: bool) -> Any:
    options: dict[str, Any] = {"map_location": "meta" if outline else "cpu"}
    try:
        allowed = [name for name in get_unsafe_globals_in_checkpoint(str(archive)) if _inert(name, scripted)]
        with safe_globals([(Inert, name) for name in allowed]):
            return torch.load(archive, weights_only=True, mmap=not scripted, **options)
    except Exception as error:  # a forged pickle may end in any of them
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it names {found[1]}" if found else f"{type(error).__name__}"
        raise UserError(
            f"{path} is refused, it holds more than weights or is damaged ({reason}): "
            "take the .safetensors file of the same weights"
        ) from None


def _inert(name: str, scripted: bool) -> bool:
    return name == LIGHTNING or (scripted and name.startswith(SCRIPTED))


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and not _is_state(content):
        inner = {str(name): value for name, value in content.items() if _is_state(value)}
        if "state_dict" not in inner and len(inner) > 1:
            raise UserError(
                f"{path} holds several sets of weights, {', '.join(inner)}: save the one to take by itself"
            )
        content = content.get("state_dict", next(iter(inner.values()), content))
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, expected named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, expected named tensors")
    return {name: tensor.detach() for name, tensor in content.items()}


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(each, Tensor) for each in value.values())
    )


def scripted_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a TorchScript module tree under its dotted name; a module is entered once."""
    entered: set[int] = set()
    ahead = [("", root)]
    while ahead:
        prefix, module = ahead.pop()
        if id(module) in entered or not isinstance(module.state, Mapping):
            continue
        entered.add(id(module))
        for name, value in module.state.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
            elif isinstance(value, Inert):
                ahead.append((f"{prefix}{name}.", value))
