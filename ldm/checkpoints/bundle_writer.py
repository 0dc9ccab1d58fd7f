"""Writes a bundle whole or not at all, with the model card that hubs read.

A card is for publishing: it shows paths as `published` does. Text from the bundles of
others goes into it as plain text.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.bundle import CONFIG, FORMAT, TOKENIZER, Part
from ldm.checkpoints.provenance import command, config_hash, git_state, published
from ldm.data.index import FILE_NAME, ShardIndex
from ldm.io.reading import hash_file
from ldm.io.writing import new_folder, write
from ldm.tokenizers import Tokenizer

CARD = "README.md"
KINDS = {  # entry or part that a bundle is named for: title, tags
    "generator": ("A text-to-image model", ("text-to-image",)),
    "backbone": ("A text-to-image latent diffusion model", ("text-to-image", "latent-diffusion")),
    "autoencoder": ("An autoencoder of pictures", ("autoencoder", "latent-diffusion")),
    "image_tokenizer": ("A tokenizer of pictures", ("image-tokenizer",)),
    "text_encoder": ("An encoder of texts", ("text-encoder",)),
    "image_encoder": ("An image encoder of CLIP", ("clip",)),
}
GENERATING = ("generator", "backbone")
SAMPLE = "python -m ldm.sample bundle=<this folder> 'prompts=[\"a red apple\"]'"
TRAIN = "python -m ldm.train +experiment=<name> {}=<this folder>"
LICENCE = """The licence of the weights depends on the data and the weights that they were trained from, which
this card does not know. Find it out, and change `license:` above, before you publish the model."""
LIMITS = """The model reproduces what is common in its training set, including its errors and prejudices, and
may reproduce single training pictures. Nothing filters prompts or pictures. Do not use it to deceive, to
depict real persons without their consent, or where a wrong picture does harm. Measure it on your
own data first."""
UNMEASURED = "Not measured yet: `python -m ldm.evaluate bundle=<this folder>` does it."
VALIDATED = "The validation numbers are in `report.md` of the training's run directory."


def write_bundle(
    path: Path,
    *,
    parts: Mapping[str, Part],
    tokenizer: Tokenizer | None = None,
    settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a bundle to a new folder and returns its path; NameTaken if the folder exists.

    Args:
        settings: further entries of the config: process, latents, sampling defaults, provenance.
        dtype: of the stored floating-point weights.
    """
    tensors = [tensor for part in parts.values() for tensor in part.state.values()]
    size = sum(x.numel() * (dtype if x.is_floating_point() else x.dtype).itemsize for x in tensors)
    with new_folder(path, size=size) as draft:
        config: dict[str, Any] = {"format": FORMAT, "parts": {}, **settings}
        for name, part in parts.items():
            file = draft / f"{name}.safetensors"
            save_tensors({key: _stored(tensor, dtype) for key, tensor in part.state.items()}, file)
            config["parts"][name] = {"file": file.name, "sha256": hash_file(file), "spec": dict(part.spec)}
        if tokenizer is not None:
            file = save_tokenizer(tokenizer, draft / TOKENIZER)
            config["tokenizer"] = {"sha256": hash_file(file)}
        write(draft / CARD, model_card(config))
        write(draft / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    return path


def save_tensors(
    tensors: Mapping[str, Any], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes contiguous tensors to a safetensors file; raises the system's own OSError.

    The library reports that error as text alone, from which a full disk could not be told.
    """
    try:
        save_file(dict(tensors), path, metadata=dict(metadata) if metadata else None)
    except SafetensorError as error:
        if (number := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from None


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> Path:
    """Writes the json file that `load_tokenizer` reads; returns its path."""
    return write(path, json.dumps(tokenizer.content(), indent=1, ensure_ascii=False) + "\n")


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def origin(config: Mapping[str, Any]) -> dict[str, Any]:
    """A bundle's record of its training: experiment, seed, config hash, commit, name and hash of its data."""
    found = {"experiment": config["name"], "config_hash": config_hash(config), **git_state()}
    found |= {"seed": config["seed"]} if "seed" in config else {}
    root = config.get("data", {}).get("root")
    if root is not None and (Path(root) / FILE_NAME).is_file():
        found["data"] = {"name": Path(root).resolve().name, "sha256": ShardIndex.load(root).sha256}
    return found


def model_card(
    config: Mapping[str, Any],
    *,
    usage: str = "",
    library: str = "ldm",
    licence: str = "unknown",
    notes: Sequence[str] = (),
    results: Mapping[str, Any] | None = None,
) -> str:
    """The Markdown of a card.

    Args:
        usage: a code block with its fences; by default the command that samples from the bundle or trains
            with it.
        library: the one that reads the files.
        licence: identifier of the weights' licence, as hubs know it.
        notes: sentences on what an export changed.
        results: a document of `ldm.evaluate` about this bundle.
    """
    kind = next((name for name in KINDS if name in config["parts"] or name in config), "")
    title, tags = KINDS.get(kind, ("A model", ()))
    if kind == "text_encoder" and "image_encoder" in config["parts"]:
        title, tags = "A CLIP model", ("clip",)
    generates = kind in GENERATING
    front = ["---", f"license: {licence}", f"library_name: {library}"]
    front += ["pipeline_tag: text-to-image"] if generates else []
    front += ["tags:", *(f"  - {tag}" for tag in ("ldm", *tags)), "---"]
    option = f"{'codes' if kind == 'image_tokenizer' else 'codec'}.{kind}"  # that takes such a bundle
    size = config.get("size") if kind != "text_encoder" else None
    pixels = f", for pictures of {size} x {size} pixels" if size else ""
    networks = ", ".join(_plain(name).replace("_", " ") for name in sorted(config["parts"]))
    sections = {
        f"# {_plain(_mapping(config, 'origin').get('experiment', 'Imported weights'))}": (
            f"{title}{pixels}. Networks: {networks}."
        ),
        "## Use": usage or f"```sh\n{SAMPLE if generates else TRAIN.format(option)}\n```",
        "## Unlike the bundle": "\n".join(f"- {note[0].upper()}{note[1:]}." for note in notes),
        "## Training": _training(config),
        "## Numbers": _numbers(results) if results else UNMEASURED if generates else VALIDATED,
        "## Licence": LICENCE if licence == "unknown" else "",
        "## Limits and misuse": LIMITS,
    }
    body = [f"{heading}\n\n{text}" for heading, text in sections.items() if text]
    return "\n\n".join(["\n".join(front), *body]) + "\n"


def _training(config: Mapping[str, Any]) -> str:
    """Where each network comes from, and the command that wrote the bundle."""
    codec = _mapping(config, "codec_origin")
    origins = {"model": _mapping(config, "origin"), **{name: _mapping(codec, name) for name in codec}}
    lines = [f"- {_plain(name).replace('_', ' ')}: {_origin(own)}" for name, own in origins.items() if own]
    typed = command(lambda word: published(" ".join(word.split())).replace("`", "'"))
    return "\n".join(lines) + f"\n\nWritten by:\n\n```sh\n{typed}\n```"


def _origin(origin: Mapping[str, Any]) -> str:
    """One network's origin in words."""
    if source := origin.get("imported_from"):
        return f"imported from {_plain(source if '://' in str(source) else Path(str(source)).name)}"
    words = [f"experiment {_plain(origin.get('experiment', 'unknown'))}"]
    if data := _mapping(origin, "data"):
        words += [
            f"trained on {_plain(data.get('name'))} (sha256 of its index: {_plain(data.get('sha256'))})"
        ]
    if commit := origin.get("commit"):
        words += [f"commit {_plain(commit)[:12]}{' with uncommitted changes' if origin.get('dirty') else ''}"]
    if config_hash := origin.get("config_hash"):
        words += [f"config {_plain(config_hash)[:12]}"]
    return ", ".join(words)


def _numbers(results: Mapping[str, Any]) -> str:
    """A table of measured numbers under their protocol."""
    protocol, provenance = _mapping(results, "protocol"), _mapping(results, "provenance")
    lines = [
        f"Protocol {_plain(protocol.get('name'))} (`{_plain(protocol.get('hash'))[:12]}`), measured at "
        f"commit {_plain(provenance.get('commit'))[:12]}. Compare only with numbers of the same protocol.",
        "",
        "| metric | value | pictures | floor |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in results["rows"] if isinstance(results.get("rows"), list) else []:
        spread = f" ± {_number(row.get('sd'))}" if row.get("sd") else ""
        few = ", too few" if row.get("few") else ""
        name, floor = f"{_plain(row.get('set'))}/{_plain(row.get('metric'))}", _number(row.get("floor"))
        value, count = _number(row.get("value")), _plain(row.get("images"))
        lines.append(f"| {name} | {value}{spread} | {count}{few} | {floor} |")
    return "\n".join(lines)


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A field that should be a mapping; an empty one if it is not, since others may have written it."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _plain(text: object) -> str:
    """At most 200 characters of a text, without those that Markdown or a terminal would interpret."""
    return re.sub(r"[^\w .,:/@+=-]", "?", str(text))[:200]
