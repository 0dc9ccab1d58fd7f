"""Foreign weights as the contents of a bundle: each network is compared with its file before any is read."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Part, is_finite
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.checkpoints.provenance import git_state
from ldm.construct import construct
from ldm.exchange.hub import Source
from ldm.exchange.keymap import Rule, shapes, translate
from ldm.exchange.weights import Weights
from ldm.io.reading import hash_file
from ldm.models.meta_init import meta_init
from ldm.tokenizers import Tokenizer

HALVES = {"float16", "bfloat16"}


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
    drop: Sequence[str] = ()

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
        prefix = self.prefix
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        if not own:
            raise UserError(f"it holds no tensor {prefix}*, so the network is not in it: take the whole file")
        return translate(
            own, self.rules, expected=expected_shapes(self.spec, held=own.values()), drop=self.drop
        )


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


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a bundle is made of.

    Attributes:
        parts, tokenizer, settings: as `write_bundle` takes them.
        files: those that the weights were read from.
        left_out: what the source held beyond it.
        notes: sentences on how the source was read, for whoever imports it.
    """

    parts: Mapping[str, Part]
    tokenizer: Tokenizer | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, fits: Mapping[str, Fit], *, notes: Sequence[str] = (), **others: Any) -> "Imported":
        """The parts that are read from files, once all of them have been compared with their networks.

        Args:
            notes: those that come before the files' own.
            others: tokenizer, settings, left_out.

        Raises:
            UserError: tensors that don't fit, or hold NaN or Inf.
        """
        for fit in fits.values():
            fit.check()
        weights = [fit.weights for fit in fits.values()]
        types = {
            str(tensor.dtype).removeprefix("torch.") for each in weights for tensor in each.outline.values()
        }
        halves = [
            f"the files hold {each} weights: precision={each} keeps their size"
            for each in sorted(types & HALVES)
        ]
        return cls(
            parts={name: fit.part() for name, fit in fits.items()},
            files=sorted({file for each in weights for file in each.files}),
            notes=list(dict.fromkeys([*notes, *(note for each in weights for note in each.notes), *halves])),
            **others,
        )

    def write(self, path: Path, source: Source, *, dtype: torch.dtype) -> Path:
        """Writes the bundle, whole or not at all; its origin holds the source's name and the files' sha256.

        Raises:
            NameTaken: `path` is there already.
        """
        root = source.path if source.path.is_dir() else source.path.parent
        hashes = {str(file.relative_to(root)): hash_file(file) for file in self.files}
        record = {"imported_from": source.name, "sha256": hashes, "left_out": self.left_out}
        before = {"before": self.settings["origin"]} if "origin" in self.settings else {}
        settings = {**self.settings, "origin": record | git_state() | before}
        return write_bundle(path, parts=self.parts, tokenizer=self.tokenizer, settings=settings, dtype=dtype)
