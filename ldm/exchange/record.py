"""What a bundle says that another format has no place for, kept in the exported files for the way back.

A record has the bundle's settings and its networks' trees, each beside what the exported files are read as
without it. On the way back an entry counts where the files are still read as that; where somebody changed
them, the files count. Tensors that have no place there, or were changed to fit, are kept as `<part>.<name>`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Part, is_finite
from ldm.construct import construct
from ldm.exchange.imported import Imported, expected_shapes
from ldm.exchange.keymap import shapes
from ldm.io.fields import check_tree

RECORD, TENSORS = "ldm.json", "ldm.safetensors"  # in an exported folder; diffusers does not look at them
NOT_SETTINGS = ("format", "parts", "tokenizer")
SAMPLING = ("process", "sampler", "guidance")
TOGETHER = (  # where the one was changed, the other is of no use
    ("autoencoder", "latents"),
    ("latents", "autoencoder"),
    ("text_encoder", "image_encoder"),
)

Config = dict[str, Any]
State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A bundle beside what its exported files are read as.

    Attributes:
        content: the record, ready to be written as json.
        tensors: those that the exported files lack, by part and name.
    """

    content: Config
    tensors: State


def make_record(own: Imported, exported: Imported, *, dtype: torch.dtype) -> Record:
    """The record of a bundle.

    Args:
        own: the bundle's settings and parts.
        exported: what the exported files are read as.
        dtype: of the exported weights.
    """
    parts: Config = {}
    tensors: dict[str, Tensor] = {}
    for name, part in own.parts.items():
        there = exported.parts.get(name)
        held = there.state if there else {}
        parts[name] = {"spec": dict(part.spec)}
        if there is not None:
            parts[name] |= {"exported": dict(there.spec), "sha256": digest(there.state, dtype)}
        tensors |= {
            f"{name}.{key}": tensor
            for key, tensor in part.state.items()
            if key not in held or not torch.equal(held[key], tensor)
        }
    settings = {
        key: {"own": value, "exported": exported.settings.get(key)} for key, value in own.settings.items()
    }
    return Record(content={"settings": settings, "parts": parts}, tensors=tensors)


def restored(found: Imported, content: Any, tensors: State, *, where: object) -> Imported:
    """What exported files are read as, with what their record keeps.

    Args:
        content: of the record, out of json.
        tensors: of the record, by part and name.
        where: the record's place, for sentences.

    Raises:
        UserError: a record that is damaged.
    """
    try:
        changed = _changed(found, content)
        own = {name: pair["own"] for name, pair in content["settings"].items() if name not in changed}
        settings = {**found.settings, **own}
        kept = {name: entry for name, entry in content["parts"].items() if name not in changed}
        parts = {**found.parts, **{name: _part(name, entry, found, tensors) for name, entry in kept.items()}}
        for name in SAMPLING:
            check_tree(settings[name], name=name)
            construct({key: value for key, value in settings[name].items() if key != "weak"})
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{where} is damaged ({error}): fetch it again, or remove it and its {TENSORS}"
        ) from None
    listed = ", ".join(sorted(changed))
    note = [f"{listed}: changed since the export, and read from the files as they are now"] if changed else []
    return replace(found, settings=settings, parts=parts, notes=[*found.notes, *note])


def digest(state: State, dtype: torch.dtype | None = None) -> str:
    """sha256 of names, types, shapes and numbers, cast to `dtype` if one is given."""
    total = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].to(dtype or state[name].dtype).contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _changed(found: Imported, content: Config) -> set[str]:
    """The entries and parts that the files no longer say as they did, with those that go with them."""
    changed = {
        name
        for name, pair in content["settings"].items()
        if not _same(pair["exported"], found.settings.get(name))
    }
    for name, entry in content["parts"].items():
        there = found.parts.get(name)
        if there is None or "exported" not in entry:
            continue
        if not _same(entry["exported"], there.spec) or entry["sha256"] != digest(there.state):
            changed.add(name)
    return changed | {other for name, other in TOGETHER if name in changed}


def _part(name: str, entry: Config, found: Imported, tensors: State) -> Part:
    """A part with the tensors that the files lack."""
    there, prefix = found.parts.get(name), f"{name}."
    extra = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    state = {**(there.state if there else {}), **extra}
    check_tree(entry["spec"], name=name)
    if shapes(state) != expected_shapes(entry["spec"], held=state.values()):
        raise UserError(f"the weights of {name} are not of its network")
    if not all(map(is_finite, extra.values())):
        raise UserError(f"the weights of {name} hold NaN or Inf")
    return Part(spec=entry["spec"], state=state)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
