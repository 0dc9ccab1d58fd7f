"""Foreign weight files: outlined first, compared with the network they are for, and only then read."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Part, is_finite
from ldm.construct import construct
from ldm.exchange.keymap import Rule, shapes, translate, unwrapped
from ldm.exchange.pickles import is_torch_file, read_entries, read_pickle
from ldm.exchange.shards import check_names, is_index, shards
from ldm.models.meta_init import meta_init

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


@dataclass(frozen=True)
class Weights:
    """Named tensors of a file, safetensors or torch's, or of the shards that an index json lists.

    The contents decide, not a file's name. Names are those of the network: see `keymap.unwrapped`.

    Attributes:
        note: a sentence on why this file was taken; empty where there is nothing to say.
    """

    path: Path
    note: str = ""

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
        return {self.names[name]: tensor for name, tensor in self._stored.items()}

    @cached_property
    def names(self) -> dict[str, str]:
        """By the name in the file, the name without the wrappers of a training."""
        try:
            return unwrapped(self._stored)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

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
        with self._header(self.path) as file:
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
        return shards(self.path) if is_index(self.path) else {}

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        """The outline under the names in the file."""
        if not self._shards:
            return self._outline(self.path)
        whole: dict[str, Tensor] = {}
        for path, listed in self._shards.items():
            part = self._outline(path)
            check_names(self.path, path, listed=listed, found=set(part))
            whole |= part
        return whole

    def _outline(self, path: Path) -> dict[str, Tensor]:
        if is_torch_file(path):
            return read_pickle(path, outline=True)
        try:
            with self._header(path) as file:
                names = file.keys()
                if len(names) > MAX_TENSORS:
                    raise UserError(
                        f"{path} has {len(names)} tensors, and no network here has more than {MAX_TENSORS}"
                    )
                return {name: self._meta(name, file.get_slice(name)) for name in names}
        except (SafetensorError, OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path} is neither a whole safetensors file nor a zip of torch.save ({error}): "
                "fetch it again"
            ) from None

    def _header(self, path: Path) -> Any:
        return safe_open(path, framework="np")  # torch's would claim memory for the whole file

    def _meta(self, name: str, view: Any) -> Tensor:
        if view.get_dtype() not in DTYPES:
            raise UserError(f"{self.path}: tensor {name!r} is of type {view.get_dtype()}, expected floats")
        try:
            return torch.empty(view.get_shape(), dtype=DTYPES[view.get_dtype()], device="meta")
        except (RuntimeError, TypeError, OverflowError):
            raise UserError(f"{self.path}: tensor {name!r} has the shape {view.get_shape()}") from None


def _tensors(path: Path, kept: Collection[str]) -> dict[str, Tensor]:
    if is_torch_file(path):
        return {name: x for name, x in read_pickle(path, outline=False).items() if name in kept}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name in kept}  # noqa: SIM118


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network of ours and the part of a file that is to become its weights.

    Attributes:
        spec: the `_target_` tree of the network.
        rules: their names against ours.
        prefix: of the tensors that belong to the network; the others are somebody else's.
        drop: tensors of those that are left out on purpose.
    """

    spec: Mapping[str, Any]
    weights: Weights
    rules: Sequence[Rule]
    prefix: str = ""
    drop: Sequence[str] = field(default=())

    def check(self) -> None:
        """Compares names, shapes and dtypes; no weight is read.

        Raises:
            UserError: one sentence with every tensor that is missing, unexpected or of another shape.
        """
        try:
            made = self._translate(self.weights.outline)
        except UserError as error:
            raise UserError(f"{self.weights.path}: {error}") from None
        for name, tensor in made.items():
            if not tensor.is_floating_point():
                raise UserError(f"{self.weights.path}: {name} is {tensor.dtype}, expected floats")

    def part(self) -> Part:
        """The network's constructor and weights, after `check`.

        Raises:
            UserError: a weight is NaN or Inf.
        """
        state = self._translate(self.weights.load())
        for name, tensor in state.items():
            if not is_finite(tensor):
                raise UserError(f"{self.weights.path}: {name} holds NaN or Inf: fetch or train it again")
        return Part(spec=self.spec, state=state)

    def _translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {
            name.removeprefix(self.prefix): tensor
            for name, tensor in tensors.items()
            if name.startswith(self.prefix)
        }
        expected = expected_shapes(self.spec, held=tensors.values())
        return translate(own, self.rules, expected=expected, drop=self.drop)


def expected_shapes(
    spec: Mapping[str, Any], *, held: Iterable[Tensor] | None = None
) -> dict[str, torch.Size]:
    """Shape of each weight of a network that is built as an outline, which takes no memory.

    Args:
        held: the tensors that a stranger's file holds, for a network out of its config: one of more than
            twice as many weights is not built to its end, which could take minutes. None sets no limit.

    Raises:
        UserError: a network of more than twice the weights that are held.
    """
    most = math.inf if held is None else 2 * sum(max(1, tensor.numel()) for tensor in held)
    with meta_init(most=most):
        return shapes(construct(spec).state_dict())
