"""Foreign files of weights: names, shapes and dtypes are read first, the weights once they are known to fit.

A file is safetensors or torch's own; its contents decide, not its name. Shards are read by the index json
that lists them. Torch's zip archives are unpickled with `weights_only=True` and in no other way. TorchScript
archives (OpenAI's CLIP) are copied without their code. An inert class stands in for those that they name, and
for those of whole modules that were pickled (OpenAI's discrete VAE).
"""

import itertools
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from ldm import UserError
from ldm.exchange.keymap import unwrapped
from ldm.io.fields import Fields
from ldm.io.reading import is_plain_name
from ldm.io.writing import explain_full_disk

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool},
}
MAX_TENSORS = 2**14  # in one file; whole pipelines have some thousands
INDEX = re.compile(r".+\.index(\.\w+)?\.json")  # such as model.safetensors.index.fp16.json
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.\w+)")
SCRIPTED = "__torch__."  # how TorchScript names the classes of a module tree
MODULES = ("dall_e.", "torch.nn.modules.")  # packages of the classes in OpenAI's pickled discrete VAE
READ = re.compile(r"[^/]+/(data\.pkl|version|byteorder|data/\d+)")  # the entries that torch.load reads
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"  # a key in CompVis' checkpoints


@dataclass(frozen=True, kw_only=True)
class Source:
    """Weights on this machine; the last three fields are known for a tag of open_clip alone."""

    path: Path  # the file or folder
    name: str  # what the user called it
    model: str | None = None
    quick_gelu: bool = False  # OpenAI's own activation, whatever the model's config says
    pixels: tuple[list[float], list[float]] | None = None  # mean and deviation of the pictures, of [0, 1]


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file, or of the shards that an index json lists.

    Names are those of the network, without what a training wrapped around it: see `keymap.unwrapped`.
    """

    path: Path  # the file, or the index json
    note: str = ""  # a sentence on why this file was taken
    # tensors that get another name; a tensor that has that name already is left out
    renamed: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.path.is_file():
            raise UserError(f"there are no weights at {self.path}: fetch the file or folder again")

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """Every tensor's name, shape and dtype, on the meta device."""
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
        if self.path not in self.files or zipfile.is_zipfile(self.path):
            return {}
        with safe_open(self.path, framework="np") as file:
            return dict(file.metadata() or {})

    @property
    def entries(self) -> Mapping[Any, Any]:
        """The plain values that a torch file has beside its weights, such as `hyper_parameters`."""
        content = _unpickled(self.path, "meta") if zipfile.is_zipfile(self.path) else {}
        return content if isinstance(content, Mapping) else {}

    def has(self, prefix: str) -> bool:
        """Whether a name begins so."""
        return any(name.startswith(prefix) for name in self.outline)

    def sizes(self, name: str) -> list[int]:
        """The shape of a tensor of two dimensions or more, by which a network's sizes are known.

        Raises UserError for a tensor that is not there.
        """
        shape = self.outline[name].shape if name in self.outline else ()
        if len(shape) < 2:
            raise UserError(f"{self.path} lacks the matrix {name}, which tells its network's sizes")
        return list(shape)

    def count(self, name: str, *, first: int = 0) -> int:
        """How many names there are with consecutive numbers from `first` on in place of `{}`."""
        return next(n for n in itertools.count() if name.format(first + n) not in self.outline)

    def load(self, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors, or those among the names in `only`; mapped from the file where that is possible."""
        kept = {stored for stored, name in self.names.items() if only is None or name in only}
        return {self.names[name]: x for path in self.files for name, x in _tensors(path, kept).items()}

    @cached_property
    def files(self) -> Mapping[Path, set[str] | None]:
        """The file itself, or the shards of an index, each with the names that it lists."""
        return _listed(self.path) if INDEX.fullmatch(self.path.name) else {self.path: None}

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        """The outline under the names in the file."""
        whole: dict[str, Tensor] = {}
        for path, listed in self.files.items():
            part = _outline(path)
            wanted = part.keys() if listed is None else listed
            for names, fault in ((wanted - part.keys(), "lacks"), (part.keys() - wanted, "holds also")):
                if names:
                    raise UserError(
                        f"{path} {fault} {_few(sorted(names))}, unlike {self.path.name}: fetch it again"
                    )
            whole |= part
        return whole


@dataclass(frozen=True)
class Joined(Weights):
    """The tensors of several files, each file's under a prefix."""

    parts: Mapping[str, Weights] = field(default_factory=dict, hash=False)

    @cached_property
    def files(self) -> Mapping[Path, set[str] | None]:
        """All files."""
        return {file: None for part in self.parts.values() for file in part.files}

    @cached_property
    def outline(self) -> dict[str, Tensor]:
        """All tensors, on the meta device."""
        return {prefix + name: x for prefix, part in self.parts.items() for name, x in part.outline.items()}

    @property
    def notes(self) -> list[str]:
        """The notes on all files."""
        return [note for part in self.parts.values() for note in part.notes]

    def load(self, only: Collection[str] | None = None) -> dict[str, Tensor]:
        """The tensors, or those among the names in `only`."""
        loaded = {prefix + name: x for prefix, part in self.parts.items() for name, x in part.load().items()}
        return {name: x for name, x in loaded.items() if only is None or name in only}


class Inert:
    """Stands for a class of a foreign pickle: takes any arguments, keeps any state, does nothing."""

    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def module_tensors(root: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a tree of modules under its dotted name; a module is entered once.

    A module of TorchScript has its tensors and modules as attributes, one of Python in three mappings.
    """
    entered: set[int] = set()
    ahead = [("", root)]
    while ahead:
        prefix, module = ahead.pop()
        if id(module) in entered or not isinstance(module.state, Mapping):
            continue
        entered.add(id(module))
        held = [
            module.state,
            *(module.state.get(f"_{kind}") for kind in ("parameters", "buffers", "modules")),
        ]
        for name, value in ((n, x) for part in held if isinstance(part, Mapping) for n, x in part.items()):
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value.detach()
            elif isinstance(value, Inert):
                ahead.append((f"{prefix}{name}.", value))


def _listed(index: Path) -> dict[Path, set[str] | None]:
    """The files that an index lists, each with its tensors' names; all must exist, and no other shard."""
    table = Fields.read(index).values.get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise UserError(f"{index}: weight_map must name the file of each tensor: fetch it again")
    listed = sorted(set(table.values()))
    if outside := [name for name in listed if not is_plain_name(name)]:
        raise UserError(f"{index} names {outside[0]!r}, which is no file of its folder: fetch it again")
    if missing := [name for name in listed if not (index.parent / name).is_file()]:
        raise UserError(f"{index.parent} lacks {_few(missing)}, of {len(listed)} files: fetch them")
    kinds = {match.groups() for match in map(SHARD.fullmatch, listed) if match}
    there = ((path.name, SHARD.fullmatch(path.name)) for path in sorted(index.parent.iterdir()))
    if extra := [name for name, match in there if match and match.groups() in kinds and name not in listed]:
        raise UserError(f"{index} does not list {_few(extra)}, which lies beside it: fetch the folder again")
    return {index.parent / name: {key for key, value in table.items() if value == name} for name in listed}


def _outline(path: Path) -> dict[str, Tensor]:
    """Names, shapes and dtypes of one file, as tensors on the meta device."""
    if zipfile.is_zipfile(path):
        return _named_tensors(path, "meta")
    try:
        with safe_open(path, framework="np") as file:  # torch's reader would claim memory for the whole file
            names = file.keys()
            if len(names) > MAX_TENSORS:
                raise UserError(f"{path} has {len(names)} tensors, the limit for a network is {MAX_TENSORS}")
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
    if zipfile.is_zipfile(path):
        return {name: x for name, x in _named_tensors(path, "cpu").items() if name in kept}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in kept}  # noqa: SIM118


def _named_tensors(path: Path, device: str) -> dict[str, Tensor]:
    """The tensors of a torch file: of a state dict, a checkpoint with one, or a TorchScript module tree."""
    content = _unpickled(path, device)
    tensors = dict(module_tensors(content)) if isinstance(content, Inert) else _state_dict(content, path)
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    if claimed > path.stat().st_size:
        raise UserError(f"{path} is forged: its tensors claim {claimed} bytes, more than the file has")
    return tensors


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict of an unpickled file: the file itself, its `state_dict`, or the only one inside it."""
    if isinstance(content, Mapping) and not _is_state(content):
        inner = {str(name): value for name, value in content.items() if _is_state(value)}
        if "state_dict" not in inner and len(inner) > 1:
            raise UserError(f"{path} holds several sets of weights, {', '.join(inner)}: save one of them")
        content = content.get("state_dict", next(iter(inner.values()), content))
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds a {type(content).__name__}, expected named tensors")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, expected named tensors")
    return {name: tensor.detach() for name, tensor in content.items()}


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(x, Tensor) for x in value.values())


def _unpickled(path: Path, device: str) -> Any:
    """The content of an archive's pickle."""
    with _archive(path) as (archive, is_scripted):
        try:
            named = get_unsafe_globals_in_checkpoint(str(archive))
            classes = (SCRIPTED,) if is_scripted else MODULES
            inert = [name for name in named if name == LIGHTNING or name.startswith(classes)]
            with safe_globals([(Inert, name) for name in inert]):
                content = torch.load(archive, weights_only=True, mmap=not is_scripted, map_location=device)
        except Exception as error:  # a forged pickle may raise anything
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            reason = f"it names {found[1]}" if found else f"{type(error).__name__}"
            raise UserError(
                f"{path} is refused because it holds more than weights or is damaged ({reason}): "
                "use the .safetensors file of the same weights"
            ) from None
        return content


@contextmanager
def _archive(path: Path) -> Iterator[tuple[Path, bool]]:
    """The archive to read, and whether it is a copy of a TorchScript archive without code and constants.

    The entries are compared with the file's size before any is unpacked: a forged one could fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as source:
            read = [info for info in source.infolist() if READ.fullmatch(info.filename)]
            is_scripted = any(name.endswith("/constants.pkl") for name in source.namelist())
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole torch file ({error}): fetch it again") from None
    compressed, size = [info for info in read if info.compress_type], sum(info.file_size for info in read)
    if compressed:
        raise UserError(f"{path} is not torch.save's: its entry {compressed[0].filename} is compressed")
    if size > path.stat().st_size:
        raise UserError(f"{path} is forged: its entries claim {size} bytes, more than the file has")
    if not is_scripted:
        yield path, False
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "weights.pt"
        try:
            with explain_full_disk(copy), zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
                for info in read:
                    with old.open(info) as entry, new.open(info.filename, "w", force_zip64=True) as to:
                        shutil.copyfileobj(entry, to)
        # zipfile raises RuntimeError for an entry that is encrypted or of a later version of the format
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise UserError(f"{path} is not a whole torch file ({error}): fetch it again") from None
        yield copy, True


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
