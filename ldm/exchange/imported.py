"""What foreign weights become: the contents of a bundle, and the record of where they are from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.bundle import Part, write_bundle
from ldm.checkpoints.provenance import git_state
from ldm.data.index import hash_file
from ldm.exchange.hub import Source
from ldm.exchange.weights import Fit
from ldm.tokenizers import Tokenizer


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
        weights = [fit.weights for fit in fits.values()]
        return cls(
            parts=read_parts(fits),
            files=sorted({file for each in weights for file in each.files}),
            notes=list(dict.fromkeys([*notes, *(note for each in weights for note in each.notes)])),
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


def read_parts(fits: Mapping[str, Fit]) -> dict[str, Part]:
    """Reads every network, once all of them have been compared with their files.

    Raises:
        UserError: tensors that don't fit, or hold NaN or Inf.
    """
    for fit in fits.values():
        fit.check()
    return {name: fit.part() for name, fit in fits.items()}
