"""Foreign weights as the contents of a bundle; no weight is read before its network's names and shapes fit.

An export keeps a record of what its format has no place for: the bundle's settings and `_target_` trees, each
beside what the files alone are read as, and tensors as `<part>.<name>`. An import takes an entry of the
record as long as the files are still read as it says; where somebody changed them, the files count.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Part, is_finite, meta_network
from ldm.checkpoints.bundle_writer import write_bundle
from ldm.checkpoints.provenance import git_state
from ldm.construct import construct
from ldm.exchange.keymap import Rule, shapes, translate
from ldm.exchange.weights import Source, Weights
from ldm.io.fields import check_tree
from ldm.io.reading import hash_file
from ldm.tokenizers import Tokenizer

HALVES = ("bfloat16", "float16")
RECORD, TENSORS = "ldm.json", "ldm.safetensors"  # in an exported folder; diffusers does not look at them
SAMPLING = ("process", "sampler", "guidance")
TOGETHER = (  # if the first was changed, the second is of no use either
    ("autoencoder", "latents"),
    ("latents", "autoencoder"),
    ("text_encoder", "image_encoder"),
)

Config = dict[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A network of ours and the part of a file that becomes its weights."""

    spec: Mapping[str, Any]  # the `_target_` tree of the network
    weights: Weights
    rules: Sequence[Rule]  # their names against ours
    prefix: str = ""  # of the network's tensors; a file may hold other networks beside it
    drop: Sequence[str] = ()  # globs of the network's tensors that are left out on purpose

    @property
    def left_out(self) -> list[str]:
        """The globs of `drop` that name a tensor of the file."""
        return [glob for glob in self.drop if any(fnmatchcase(name, glob) for name in self.weights.outline)]

    def check(self) -> None:
        """Compares names, shapes and dtypes; no weight is read. One message lists every difference."""
        for name, tensor in self._translate(self.weights.outline).items():
            if not tensor.is_floating_point():
                raise UserError(f"{self.weights.path}: {name} is {tensor.dtype}, expected floats")

    def part(self) -> Part:
        """The network's constructor and weights, after `check`; NaN and Inf are refused."""
        own = {name for name in self.weights.outline if name.startswith(self.prefix)}
        state = self._translate(self.weights.load(only=own))
        for name, tensor in state.items():
            if not is_finite(tensor):
                raise UserError(f"{self.weights.path}: {name} holds NaN or Inf: fetch or train it again")
        return Part(spec=self.spec, state=state)

    def _translate(self, tensors: State) -> dict[str, Tensor]:
        prefix = self.prefix
        own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
        try:
            if not own:
                raise UserError(f"it has no tensor {prefix}*: use a file with the whole pipeline")
            expected = shapes(meta_network(self.spec, own).state_dict())
            return translate(own, self.rules, expected=expected, drop=self.drop)
        except UserError as error:
            raise UserError(f"{self.weights.path}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The contents of a bundle; parts, tokenizer and settings are as `write_bundle` takes them."""

    parts: Mapping[str, Part]
    tokenizer: Tokenizer | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[Path] = ()  # those that the weights were read from
    left_out: list[str] = field(default_factory=list)  # what the source held beyond it
    notes: list[str] = field(default_factory=list)  # how the source was read, in sentences

    @classmethod
    def of(cls, fits: Mapping[str, Fit], *, notes: Sequence[str] = (), **others: Any) -> "Imported":
        """Reads the parts from their files, once all of them have been compared with their networks.

        The notes come before the files' own. Others are tokenizer, settings, left_out.
        """
        for fit in fits.values():
            fit.check()
        weights = [fit.weights for fit in fits.values()]
        types = {str(tensor.dtype) for each in weights for tensor in each.outline.values()}
        halves = [
            f"the files hold {each} weights: precision={each} keeps their size"
            for each in HALVES
            if f"torch.{each}" in types
        ]
        return cls(
            parts={name: fit.part() for name, fit in fits.items()},
            files=sorted({file for each in weights for file in each.files}),
            notes=list(dict.fromkeys([*notes, *(note for each in weights for note in each.notes), *halves])),
            **others,
        )

    def write(self, path: Path, source: Source, *, dtype: torch.dtype) -> Path:
        """Writes the bundle whole or not at all, with its origin; NameTaken if `path` exists."""
        root = source.path if source.path.is_dir() else source.path.parent
        hashes = {str(file.relative_to(root)): hash_file(file) for file in self.files}
        # the last name alone of a path: a bundle is shared, and folders are its maker's own business
        name = source.name if "://" in source.name else source.path.resolve().name
        origin = {"imported_from": name, "sha256": hashes, "left_out": self.left_out} | git_state()
        if "origin" in self.settings:
            origin["before"] = self.settings["origin"]
        settings = {**self.settings, "origin": origin}
        return write_bundle(path, parts=self.parts, tokenizer=self.tokenizer, settings=settings, dtype=dtype)

    def restored(self, record: Any, tensors: State, *, where: object) -> "Imported":
        """Adds to what exported files are read as what their record, which lies at `where`, keeps.

        Anybody may have written it. Its tensors are named by part and name.
        """
        try:
            changed = self._changed(record)
            own = {name: pair["own"] for name, pair in record["settings"].items() if name not in changed}
            settings = {**self.settings, **own}
            kept = {name: entry["spec"] for name, entry in record["parts"].items() if name not in changed}
            parts = {**self.parts, **{name: self._part(name, spec, tensors) for name, spec in kept.items()}}
            for name in SAMPLING:
                check_tree(settings[name], name=name)
                construct({key: value for key, value in settings[name].items() if key != "weak"})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(
                f"{where} is damaged ({error}): fetch it again, or remove it and its {TENSORS}"
            ) from None
        listed = ", ".join(sorted(changed))
        note = [f"{listed}: changed since the export, and read from the files as they are now"]
        return replace(self, settings=settings, parts=parts, notes=self.notes + note * bool(changed))

    def _changed(self, record: Config) -> set[str]:
        """The entries and parts that the files contradict, with those that are of no use without them."""
        settings, parts = record["settings"].items(), record["parts"].items()
        changed = {key for key, pair in settings if not _same(pair["exported"], self.settings.get(key))}
        for name, entry in parts:
            if name in self.parts and "exported" in entry:
                found = self.parts[name]
                if not _same(entry["exported"], found.spec) or entry["sha256"] != digest(found.state):
                    changed.add(name)
        return changed | {other for name, other in TOGETHER if name in changed}

    def _part(self, name: str, spec: Config, tensors: State) -> Part:
        """A part of the bundle with the tensors that the files lack."""
        prefix = f"{name}."
        extra = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
        state = {**(self.parts[name].state if name in self.parts else {}), **extra}
        check_tree(spec, name=name)
        if shapes(state) != shapes(meta_network(spec, state).state_dict()):
            raise UserError(f"the weights of {name} do not fit its network")
        if not all(map(is_finite, extra.values())):
            raise UserError(f"the weights of {name} hold NaN or Inf")
        return Part(spec=spec, state=state)


def make_record(own: Imported, exported: Imported, dtype: torch.dtype) -> tuple[Config, dict[str, Tensor]]:
    """The record of a bundle, for a json file, and the tensors that the exported files lack.

    `exported` is what these files are read as, with weights of a dtype.
    """
    parts: Config = {}
    tensors: dict[str, Tensor] = {}
    for name, part in own.parts.items():
        parts[name] = {"spec": dict(part.spec)}
        held: State = {}
        if found := exported.parts.get(name):
            held = found.state
            parts[name] |= {"exported": dict(found.spec), "sha256": digest(held, dtype)}
        for key, tensor in part.state.items():
            if key not in held or not torch.equal(held[key], tensor):
                tensors[f"{name}.{key}"] = tensor
    settings = {
        key: {"own": value, "exported": exported.settings.get(key)} for key, value in own.settings.items()
    }
    return {"settings": settings, "parts": parts}, tensors


def digest(state: State, dtype: torch.dtype | None = None) -> str:
    """sha256 of names, types, shapes and numbers, cast to `dtype` if one is given."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].to(dtype or state[name].dtype).contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal as json, which has no tuples and no order of keys."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
