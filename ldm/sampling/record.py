"""How a picture was made: told in its PNG to programs and to people, and in one file of all pictures.

All pictures of a command share `pictures.jsonl`, a line each: ten thousand of them are read as one table, and
don't come with ten thousand more files. Each PNG carries the same by itself, wherever it is moved.
"""

import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ldm import UserError
from ldm.checkpoints.provenance import git_state
from ldm.data.decode import MAX_PIXELS
from ldm.generators.generator import Opened
from ldm.io.fields import Fields, check_tree
from ldm.io.reading import hash_file, parse_json
from ldm.randomness.seeds import EARLIER_GENERATOR
from ldm.sampling.jobs import Job
from ldm.tokenizers import Tokenizer

FIELD, READABLE = "ldm", "parameters"  # text chunks; other programs show the second
MOST = 4096  # pictures in a batch
OWN = frozenset(  # entries of a record that are no settings of its generator; earlier versions wrote `weak`
    {
        *("prompt", "tokens", "negative", "seed", "steps", "scale", "size", "bundle", "bundle_path", "batch"),
        *("version", "commit", "torch", "threads", "machine", "image", "strength", "mask", "weak"),
    }
)


def facts_of(job: Job, opened: Opened, *, batch: tuple[int, int]) -> dict[str, Any]:
    """Everything needed to reproduce a picture.

    Args:
        opened: the generator with the job's options. Its settings stand among the other facts.
        batch: the place of the picture in its batch, and the size of that, by which float sums are rounded.
    """
    generator = opened.generator
    settings = generator.settings()
    facts: dict[str, Any] = {
        "prompt": job.prompt,
        "tokens": tokens_of(job, generator.tokenizer),
        "negative": job.negative,
        "seed": job.seed,
        "steps": first(settings, "steps"),
        "scale": first(settings, "scale"),
        "size": [generator.size, generator.size],
        "bundle": opened.bundle.sha256,
        "bundle_path": opened.bundle.place,
        "batch": {"place": batch[0], "size": batch[1]},
        **environment(),
    }
    if job.image is not None:
        facts |= {"image": identity(job.image), "strength": job.drawn_strength}
    if job.mask is not None:
        facts["mask"] = identity(job.mask)
    if taken := sorted(settings.keys() & OWN - {"negative"}):
        raise UserError(f"a generator's setting can't be called {taken[0]!r}: a record has such an entry")
    return facts | settings


def tokens_of(job: Job, tokenizer: Tokenizer | None) -> dict[str, int] | None:
    """How many tokens the prompt takes, and how many of them are read; of a negative prompt, too.

    None without a tokenizer.
    """
    if tokenizer is None:
        return None
    count, limit = tokenizer.count(job.prompt), tokenizer.context_length
    found = {"prompt": count, "read": min(count, limit)}
    if job.negative:
        negative = tokenizer.count(job.negative)
        found |= {"negative": negative, "negative_read": min(negative, limit)}
    return found


def first(settings: Mapping[str, Any], name: str) -> Any:
    """The first value of this name in settings, at any depth; None where there is none."""
    if name in settings:
        return settings[name]
    inner = (first(value, name) for value in settings.values() if isinstance(value, Mapping))
    return next((value for value in inner if value is not None), None)


def settings_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The generator's settings among the facts of a picture."""
    settings = {name: value for name, value in facts.items() if name not in OWN}
    if "sampler" in settings:  # a record of version 0.1.0, all of latent diffusion, doesn't name the noise
        settings.setdefault("generator", EARLIER_GENERATOR)
    return settings


@lru_cache
def environment() -> dict[str, Any]:
    """Version and commit of the code, and what else can change a picture's last bits."""
    return {
        "version": version("ldm"),
        "commit": git_state()["commit"],
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }


def identity(path: Path) -> dict[str, str]:
    """A file's place and sha256."""
    return {"file": str(path), "sha256": hash_file(path)}


def readable(facts: Mapping[str, Any]) -> str:
    """The same for people, in the form that other programs of this kind read and write."""
    told = {
        "Steps": facts["steps"],
        **{name.capitalize(): short(value) for name, value in settings_of(facts).items()},
        "CFG scale": facts["scale"],
        "Seed": facts["seed"],
        "Size": "x".join(map(str, facts["size"])),
        "Denoising strength": facts.get("strength"),
        "Model": Path(facts["bundle_path"]).name,
        "Model hash": facts["bundle"][:10],
        "Version": f"ldm {facts['version']}",
    }
    lines = [facts["prompt"]]
    if facts["negative"]:
        lines.append(f"Negative prompt: {facts['negative']}")
    lines.append(", ".join(f"{name}: {value}" for name, value in told.items() if value is not None))
    return "\n".join(lines)


def short(value: Any) -> Any:
    """A setting in a word: of a config node the name of its method, or its own."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    return str(value.get("method", value)["_target_"]).rpartition(".")[2]


def chunks(facts: Mapping[str, Any]) -> dict[str, str]:
    """The text chunks of a PNG."""
    return {FIELD: json.dumps(facts, ensure_ascii=False), READABLE: readable(facts)}


def read_facts(path: Path) -> dict[str, Any]:
    """What a picture tells of how it was made.

    Raises:
        UserError: the file is no PNG of ours, or its record is damaged.
    """
    if not path.is_file():
        raise UserError(f"there is no picture {path}")
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise UserError(f"it has {picture.width} x {picture.height} pixels")
            picture.load()  # text may come after the pixels
            record = Fields.of(parse_json(picture.text[FIELD], name="its record"), name="its record")
        check_record(record)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is no whole PNG with a record ({error})") from error
    except KeyError as error:
        raise UserError(f"{path} tells nothing of how it was made: ldm.sample has not drawn it") from error
    return dict(record.values)


def check_record(record: Fields) -> None:
    """Refuses a record that no command writes, before anything that it names is opened or built.

    Raises:
        UserError: the entry, and what is wrong with it.
    """
    for name in ("version", "bundle", "bundle_path", "prompt"):
        record.text(name)
    place = record.mapping("batch")
    number, size = place.whole("place", low=0, high=MOST), place.whole("size", high=MOST)
    if number >= size:
        raise UserError(f"{place.name}: place={number} must be below {size=}")
    if "seed" not in record.values:
        raise UserError(f"{record.name} lacks the field seed")
    for name, value in settings_of(record.values).items():
        if isinstance(value, Mapping | list):
            check_tree(value, name=f"{record.name}: {name}")
    for name in record.values.keys() & {"image", "mask"}:
        record.mapping(name).text("file")
        record.mapping(name).text("sha256")
