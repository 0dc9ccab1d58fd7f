"""How a picture was made: written into its PNG for programs and for people, and read back to make it again.

All pictures of a command share `pictures.jsonl`, a line each: ten thousand of them are read as one table, and
don't come with ten thousand more files. Each PNG carries the same by itself, wherever it is moved.
"""

import json
import os
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.provenance import git_state, published
from ldm.data.decode import MAX_PIXELS
from ldm.generators.generator import Opened, open_generator
from ldm.io.fields import Fields, check_tree
from ldm.io.reading import hash_file, parse_json
from ldm.randomness.seeds import EARLIER_GENERATOR
from ldm.sampling.jobs import Job

FIELD, READABLE = "ldm", "parameters"  # text chunks; other programs show the second
MAX_BATCH = 4096  # a forged record must not ask for a larger one
NONE: Mapping[str, str] = MappingProxyType({})
MAY_DIFFER = ("commit", "torch", "threads", "machine")  # reported, not refused: the pixels are compared
SHOWN = ("steps", "scale")  # settings at any depth that a record has at its top
WEAK = "guidance.weak"
FILES = ("bundle", "image", "mask", WEAK)  # that a picture is generated from
OWN = frozenset(  # entries of a record that are no settings of its generator; earlier versions wrote `weak`
    {
        *("prompt", "tokens", "negative", "seed", "steps", "scale", "size", "bundle", "bundle_path", "batch"),
        *("version", "commit", "torch", "threads", "machine", "image", "strength", "mask", "weak"),
    }
)


def facts_of(job: Job, opened: Opened, *, batch: Mapping[str, int]) -> dict[str, Any]:
    """Everything needed to reproduce a picture.

    Args:
        opened: the generator with the job's options. Its settings stand among the other facts.
        batch: `place` and `size`: kernels sum in an order that the size decides, which may change last bits.
    """
    generator, settings = opened.generator, opened.generator.settings()
    if taken := sorted(settings.keys() & OWN - {"negative", *SHOWN}):
        raise UserError(f"a generator's setting can't be called {taken[0]!r}: a record has such an entry")
    tokens = None
    if tokenizer := generator.tokenizer:
        texts = {"prompt": job.prompt} | ({"negative": job.negative} if job.negative else {})
        tokens = {name: tokenizer.count(text) for name, text in texts.items()}
        names = {"prompt": "read", "negative": "negative_read"}
        tokens |= {names[name]: min(count, tokenizer.context_length) for name, count in tokens.items()}
    facts = {"prompt": job.prompt, "tokens": tokens, "negative": job.negative, "seed": job.seed}
    facts |= {name: first(settings, name) for name in SHOWN}
    facts |= {"size": [generator.size, generator.size], "bundle": opened.bundle.sha256}
    facts |= {"bundle_path": published(opened.bundle.place), "batch": dict(batch), **environment()}
    if job.image is not None:
        facts |= {"image": identity(job.image), "strength": job.used_strength}
    if job.mask is not None:
        facts["mask"] = identity(job.mask)
    return facts | shared(settings)


def shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the paths of files (`path`, at any depth) as `published` shows them."""
    return {
        name: shared(value) if isinstance(value, Mapping) else published(value) if name == "path" else value
        for name, value in settings.items()
    }


def first(settings: Mapping[str, Any], name: str) -> Any:
    """The first value of this name in settings, at any depth; None where there is none."""
    if name in settings:
        return settings[name]
    inner = (first(value, name) for value in settings.values() if isinstance(value, Mapping))
    return next((value for value in inner if value is not None), None)


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's settings among the facts of a picture."""
    settings = {name: value for name, value in facts.items() if name not in OWN}
    # a record repeats these from inside sampler and guidance; where there are no such nodes they are settings
    if not any(isinstance(value, Mapping) for value in settings.values()):
        settings |= {name: facts[name] for name in SHOWN if facts.get(name) is not None}
    if "sampler" in settings:  # a record of version 0.1.0, all of latent diffusion, doesn't name the noise
        settings.setdefault("generator", EARLIER_GENERATOR)
    return settings


@lru_cache  # git runs in a process of its own
def environment() -> dict[str, Any]:
    """Version and commit of the code, and what else can change a picture's last bits."""
    own = {"version": version("ldm"), "commit": git_state()["commit"], "torch": torch.__version__}
    return own | {"threads": torch.get_num_threads(), "machine": platform.machine()}


def identity(path: Path) -> dict[str, str]:
    """A file's name and sha256, without its folder: a record is shared with the picture."""
    return {"file": path.name, "sha256": hash_file(path)}


def chunks(facts: Mapping[str, Any]) -> dict[str, str]:
    """The text chunks of a PNG: the facts as json, and as other programs of this kind read and write them."""
    named = {
        "Steps": facts["steps"],
        **{n.capitalize(): short(value) for n, value in settings_of(facts).items() if n not in SHOWN},
        "CFG scale": facts["scale"],
        "Seed": facts["seed"],
        "Size": "x".join(map(str, facts["size"])),
        "Denoising strength": facts.get("strength"),
        "Model": Path(facts["bundle_path"]).name,
        "Model hash": facts["bundle"][:10],
        "Version": f"ldm {facts['version']}",
    }
    lines = [facts["prompt"], *([f"Negative prompt: {facts['negative']}"] if facts["negative"] else [])]
    lines.append(", ".join(f"{name}: {value}" for name, value in named.items() if value is not None))
    return {FIELD: json.dumps(facts, ensure_ascii=False), READABLE: "\n".join(lines)}


def short(value: Any) -> Any:
    """A setting in a word: of a config node the name of its method, or its own."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    return str(value.get("method", value)["_target_"]).rpartition(".")[2]


def read_facts(path: Path) -> dict[str, Any]:
    """The record in a picture, checked before anything that it names is opened or built.

    Raises UserError where the file is no PNG of ours, or its record is damaged or none that a command writes.
    """
    if not path.is_file():
        raise UserError(f"there is no picture {path}")
    try:
        # one format: Pillow would else try all of its decoders on a file of unknown origin
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"it has {picture.width} x {picture.height} pixels")
            picture.load()  # text may come after the pixels
            record = Fields.of(parse_json(picture.text[FIELD], name="its record"), name="its record")
        check_record(record)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no whole PNG with a record ({error})") from error
    except KeyError as error:
        raise UserError(f"{path} has no record of how it was made: ldm.sample has not written it") from error
    return dict(record.values)


def check_record(record: Fields) -> None:
    """Refuses an entry that no command writes; raises UserError with its name."""
    for name in ("version", "bundle", "bundle_path", "prompt"):
        record.text(name)
    batch = record.mapping("batch")
    place, size = batch.whole("place", low=0, high=MAX_BATCH), batch.whole("size", high=MAX_BATCH)
    if place >= size:
        raise UserError(f"{batch.name}: {place=} must be below {size=}")
    if "seed" not in record.values:
        raise UserError(f"{record.name} lacks the field seed")
    for name, value in settings_of(record.values).items():
        if isinstance(value, Mapping | list):
            check_tree(value, name=f"{record.name}: {name}")
    for name in record.values.keys() & {"image", "mask"}:
        record.mapping(name).text("file")
        record.mapping(name).text("sha256")


def reopen(path: Path, facts: Mapping[str, Any], given: Mapping[str, str] = NONE) -> tuple[Opened, Job]:
    """The generator and the job that a picture's record describes.

    `given` says where `FILES` lie now; the others are looked for where the record says. Records of earlier
    versions have whole paths.

    Raises UserError for another version, or another bundle, source picture or mask, or one that is not there.
    """
    if facts["version"] != (own := environment()["version"]):
        raise UserError(
            f"{path} was generated by ldm {facts['version']}, and pictures of this ldm {own} may differ:"
            f" install ldm=={facts['version']}"
        )
    place = given.get("bundle", facts["bundle_path"])
    if place.startswith(".../"):
        raise UserError(f"{path} doesn't say in which folder its bundle {place} lies: name it with bundle=")
    try:
        found = Bundle.open(place)
    except BundleError as error:
        raise UserError(f"{path}: {error}; if its bundle lies elsewhere now, name it with bundle=") from error
    if found.sha256 != facts["bundle"]:
        raise UserError(
            f"{path} was generated by a bundle with sha256 {facts['bundle'][:12]}, and {found.place} has"
            f" {found.sha256[:12]}: name the right one with bundle="
        )
    settings = settings_of(facts)
    guidance = settings["guidance"] if isinstance(settings.get("guidance"), Mapping) else {}
    used = {"bundle", *(facts.keys() & {"image", "mask"}), *([WEAK] if guidance.get("weak") else [])}
    if extra := sorted(given.keys() - used):
        raise UserError(f"{path} was generated without {', '.join(extra)}: leave it out")
    if WEAK in given:
        weak = guidance["weak"] if isinstance(guidance["weak"], Mapping) else {}
        settings["guidance"] = {**guidance, "weak": {**weak, "path": given[WEAK]}}
    files = {name: Path(given.get(name, facts[name]["file"])) for name in ("image", "mask") if name in facts}
    for name, file in files.items():
        if not os.path.isfile(file) or hash_file(file) != facts[name]["sha256"]:
            raise UserError(
                f"{path} was generated from a file {Path(facts[name]['file']).name} with sha256"
                f" {facts[name]['sha256'][:12]}, and {file} is gone or another one: name it with {name}="
            )
    own_fields = {name: facts[name] for name in ("prompt", "seed", "negative", "strength") if name in facts}
    job = Job(name=path.stem, **own_fields, **files)  # the guidance scale is one of the settings
    return open_generator(found, **settings), job


def compared(image: Tensor, path: Path, facts: Mapping[str, Any]) -> str:
    """How a picture differs from the one in a file that it reproduces, as the end of a sentence."""
    with Image.open(path) as picture:
        before = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    if before.shape != image.shape:
        return f"its size differs from that of {path}"
    difference = (image.int() - before.int()).abs()  # bytes would wrap around
    if not difference.any():
        return f"every pixel is that of {path}"
    now = environment()
    changed = [f"{key} {facts.get(key)}, here {now[key]}" for key in MAY_DIFFER if facts.get(key) != now[key]]
    count, most = int(difference.amax(dim=0).count_nonzero()), int(difference.max())
    reason = f" ({'; '.join(changed)})" if changed else ""
    return f"{count} pixels differ from {path}, by {most} of 255 at most{reason}"
