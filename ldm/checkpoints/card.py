"""Model cards: the README.md of a bundle and of an exported folder, in the form that model hubs read.

A card is for publishing, so it holds no path of this machine: of a data set it has the last folder's name.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoints.provenance import command
from ldm.io.reading import read_json

FILE_NAME = "README.md"
RESULTS = ("results.json", "../evaluation/results.json")  # places of measured numbers, from a bundle's folder
KINDS = {  # entry or part that a bundle is named for: title, tags
    "generator": ("A text-to-image model", ("text-to-image",)),
    "backbone": ("A text-to-image latent diffusion model", ("text-to-image", "latent-diffusion")),
    "autoencoder": ("An autoencoder of pictures", ("autoencoder", "latent-diffusion")),
    "text_encoder": ("A CLIP model", ("clip",)),
    "image_encoder": ("An image encoder of CLIP", ("clip",)),
}
GENERATING = ("generator", "backbone")
USAGE = {
    True: "python -m ldm.sample bundle=<this folder> 'prompts=[\"a red apple\"]'",
    False: "python -m ldm.train +experiment=<name> codec.{part}=<this folder>",
}
LICENCE = """The licence of the weights depends on the data and the weights that they were trained from, which
this card does not know. Find it out, and change `license:` above, before you publish the model."""
LIMITS = """The model reproduces what is common in its training set, including its errors and prejudices, and
may reproduce single training pictures. Nothing filters prompts or pictures. Do not use it to deceive, to
depict real persons without their consent, or where a wrong picture does harm. Measure it on your
own data first."""
UNMEASURED = {
    True: "Not measured yet: `python -m ldm.evaluate bundle=<this folder>` does it.",
    False: "The validation numbers are in `report.md` of the training's run directory.",
}


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
        config: of the bundle: its parts, size and origin.
        usage: how to use it, a code block with its fences; the default samples with it or trains beside it.
        library: that reads the files.
        licence: identifier of the weights' licence, as hubs know it.
        notes: sentences on what differs from the bundle, of an export.
        results: a document of `ldm.evaluate` about this bundle.
    """
    kind = next((name for name in KINDS if name in config["parts"] or name in config), "")
    title, tags = KINDS.get(kind, ("A model", ()))
    front = ["---", f"license: {licence}", f"library_name: {library}"]
    front += ["pipeline_tag: text-to-image"] if kind in GENERATING else []
    front += ["tags:", *(f"  - {tag}" for tag in ("ldm", *tags)), "---"]
    size = config.get("size")
    pixels = f" of {size} x {size} pixels" if size and kind != "text_encoder" else ""
    usage = usage or f"```sh\n{USAGE[kind in GENERATING].format(part=kind)}\n```"
    sections = [
        "\n".join(front),
        f"# {_plain(_mapping(config, 'origin').get('experiment', 'Imported weights'))}",
        f"{title}{', for pictures' if pixels else ''}{pixels}. {_names(config['parts'])}",
        f"## Use\n\n{usage}",
        *([f"## Unlike the bundle\n\n{_list(notes)}"] if notes else []),
        f"## Training\n\n{_training(config)}",
        f"## Numbers\n\n{UNMEASURED[kind in GENERATING] if results is None else _numbers(results)}",
        *([f"## Licence\n\n{LICENCE}"] if licence == "unknown" else []),
        f"## Limits and misuse\n\n{LIMITS}",
    ]
    return "\n\n".join(sections) + "\n"


def results_of(bundle: Path, sha256: str) -> dict[str, Any] | None:
    """The numbers that were measured of a bundle, if they lie in its folder or in `evaluation` beside it.

    Those of another bundle, and files that are no results, are passed over.
    """
    for place in RESULTS:
        try:
            found = read_json(bundle / place)
        except (OSError, ValueError):
            continue
        if isinstance(found, Mapping) and _mapping(found, "bundle").get("sha256") == sha256:
            return dict(found)
    return None


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in sentences)


def _names(parts: Mapping[str, Any]) -> str:
    return f"Networks: {', '.join(_plain(name).replace('_', ' ') for name in sorted(parts))}."


def _training(config: Mapping[str, Any]) -> str:
    """Where each network comes from, and the command that wrote this folder."""
    codec = _mapping(config, "codec_origin")
    origins = {"model": _mapping(config, "origin"), **{name: _mapping(codec, name) for name in codec}}
    lines = [
        f"- {_plain(name).replace('_', ' ')}: {_origin(origin)}" for name, origin in origins.items() if origin
    ]
    typed = " ".join(command().split()).replace("`", "'")
    home = str(Path.home())
    typed = typed.replace(home, "~") if len(home) > 1 else typed
    return "\n".join(lines) + f"\n\nWritten by:\n\n```sh\n{typed}\n```"


def _origin(origin: Mapping[str, Any]) -> str:
    """One network's origin in words."""
    if source := origin.get("imported_from"):
        return f"imported from {_plain(source if '://' in str(source) else Path(str(source)).name)}"
    told = [f"experiment {_plain(origin.get('experiment', 'unknown'))}"]
    if data := _mapping(origin, "data"):
        told += [f"trained on {_plain(data.get('name'))} (sha256 of its index: {_plain(data.get('sha256'))})"]
    if commit := origin.get("commit"):
        told += [f"commit {_plain(commit)[:12]}{' with uncommitted changes' if origin.get('dirty') else ''}"]
    if config_hash := origin.get("config_hash"):
        told += [f"config {_plain(config_hash)[:12]}"]
    return ", ".join(told)


def _numbers(results: Mapping[str, Any]) -> str:
    """A table of measured numbers under their protocol."""
    protocol, provenance = _mapping(results, "protocol"), _mapping(results, "provenance")
    head = (
        f"Protocol {_plain(protocol.get('name'))} (`{_plain(protocol.get('hash'))[:12]}`), measured at "
        f"commit {_plain(provenance.get('commit'))[:12]}. Compare only with numbers of the same protocol."
    )
    table = ["| metric | value | pictures | floor |", "| --- | ---: | ---: | ---: |"]
    for row in results["rows"] if isinstance(results.get("rows"), list) else []:
        spread = f" ± {_number(row.get('sd'))}" if row.get("sd") else ""
        few = ", too few" if row.get("few") else ""
        name, floor = f"{_plain(row.get('set'))}/{_plain(row.get('metric'))}", _number(row.get("floor"))
        value, count = _number(row.get("value")), _plain(row.get("images"))
        table.append(f"| {name} | {value}{spread} | {count}{few} | {floor} |")
    return head + "\n\n" + "\n".join(table)


def _mapping(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A field that should be a mapping; an empty one where it is none, since others may have written it."""
    found = values.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _plain(text: object) -> str:
    """A text without what Markdown or a terminal would read as more than text, in 200 characters at most."""
    return re.sub(r"[^\w .,:/@+=-]", "?", str(text))[:200]
