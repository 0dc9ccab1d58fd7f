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
from ldm.checkpoints.bundle import SHIPPED, Bundle
from ldm.checkpoints.provenance import git_state
from ldm.data.decode import MAX_PIXELS
from ldm.data.index import hash_file
from ldm.drawing.drawer import Drawer
from ldm.drawing.job import Job
from ldm.io.fields import Fields, check_tree
from ldm.io.reading import parse_json

FIELD, READABLE = "ldm", "parameters"  # text chunks; other programs show the second


def facts_of(
    job: Job, drawer: Drawer, bundle: Bundle, *, precision: str, batch: tuple[int, int]
) -> dict[str, Any]:
    """All that the bytes of a picture follow from.

    Args:
        batch: the place of the picture in its batch, and the size of that, by which float sums are rounded.
    """
    guidance, tokenizer = drawer.guidance(job), drawer.pipeline.codec.tokenizer
    tokens = tokenizer.count(job.prompt)
    facts: dict[str, Any] = {
        "prompt": job.prompt,
        "tokens": {"prompt": tokens, "read": min(tokens, tokenizer.context_length)},
        "negative": job.negative,
        "seed": job.seed,
        "steps": drawer.nodes["sampler"]["steps"],
        "scale": scale_of(guidance),
        "size": [drawer.pipeline.size, drawer.pipeline.size],
        "bundle": bundle.sha256,
        "bundle_path": "shipped" if bundle.path == SHIPPED else str(bundle.path),
        "sampler": drawer.nodes["sampler"],
        "guidance": guidance,
        "precision": precision,
        "generator": drawer.pipeline.noise.name,
        "batch": {"place": batch[0], "size": batch[1]},
        **environment(),
    }
    if job.image is not None:
        facts |= {"image": identity(job.image), "strength": job.drawn_strength}
    if job.mask is not None:
        facts["mask"] = identity(job.mask)
    if "weak" in guidance:
        facts["weak"] = drawer.weak
    return facts


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


def scale_of(guidance: Mapping[str, Any]) -> float | None:
    """The scale of a guidance node, also where it lies inside another; none of a guidance without."""
    return guidance.get("scale", scale_of(guidance["within"]) if "within" in guidance else None)


def readable(facts: Mapping[str, Any]) -> str:
    """The same for people, in the form that other programs of this kind read and write."""
    told = {
        "Steps": facts["steps"],
        "Sampler": _method(facts["sampler"]),
        "Guidance": str(facts["guidance"]["_target_"]).rpartition(".")[2],
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


def _method(sampler: Mapping[str, Any]) -> str:
    return str(sampler["method"]["_target_"]).rpartition(".")[2]


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
    for name in ("version", "bundle", "bundle_path", "precision", "prompt"):
        record.text(name)
    for name in ("sampler", "guidance"):
        check_tree(record.mapping(name).values, name=f"{record.name}: {name}")
    for name in record.values.keys() & {"image", "mask"}:
        record.mapping(name).text("file")
        record.mapping(name).text("sha256")
