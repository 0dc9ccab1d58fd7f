"""A whole pipeline in one file with CompVis' names: Stable Diffusion 1.x's .ckpt and .safetensors, and ours.

The names do not tell the architecture. A file that we wrote carries diffusers' four configs and the tokenizer
in its header; of any other file the caller must say what it is, and its shapes must agree.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ldm.exchange import compvis
from ldm.exchange.architecture import CONFIGS, Architecture, from_configs
from ldm.exchange.fields import MAX_BYTES, Fields
from ldm.exchange.imported import Imported, read_parts
from ldm.exchange.text_states import text_fit
from ldm.exchange.weights import Fit, Weights
from ldm.tokenizers import Tokenizer

HEADER = "ldm"  # the key in a safetensors header
PREFIXES = (compvis.BACKBONE, compvis.AUTOENCODER, compvis.TEXT_ENCODER)


def is_single_file(weights: Weights) -> bool:
    """Whether a file has the names of a whole pipeline."""
    return any(name.startswith(compvis.BACKBONE) for name in weights.outline)


def import_single_file(
    weights: Weights, *, architecture: Architecture, tokenizer: Callable[[], Tokenizer], text_state: str
) -> Imported:
    """The pipeline of a file.

    Args:
        architecture, tokenizer: of a file that carries none.

    Raises:
        ValueError: tensors that don't fit the architecture, or a header that is damaged.
    """
    carried = weights.metadata.get(HEADER)
    if carried is not None:
        architecture, vocabulary = _read_header(carried, weights.path)
    else:
        vocabulary = tokenizer()
    left_out = _left_out(weights)
    fits = {
        "backbone": _backbone(weights, architecture),
        "autoencoder": Fit(
            spec=architecture.autoencoder,
            weights=weights,
            rules=compvis.vae_rules(num_levels=len(architecture.autoencoder["multipliers"])),
            prefix=compvis.AUTOENCODER,
            drop=["loss.*"],
        ),
        "text_encoder": text_fit(
            architecture.text_encoder, weights, state=text_state, prefix=compvis.TEXT_ENCODER
        ),
    }
    linear = has_linear_projection(weights)
    return Imported(
        parts=read_parts(fits),
        tokenizer=vocabulary,
        files=[weights.path],
        settings=replace(architecture, linear_projection=linear).settings(),
        left_out=left_out,
    )


def header(configs: dict[str, dict[str, Any]], tokenizer: Tokenizer) -> dict[str, str]:
    """What a safetensors header says of the pipeline in its file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        tokenizer.save(path)
        content = configs | {"tokenizer": json.loads(path.read_text(encoding="utf-8"))}
    return {HEADER: json.dumps(content)}


def _read_header(text: str, path: Path) -> tuple[Architecture, Tokenizer]:
    try:
        content = json.loads(text) if len(text) < MAX_BYTES else None
        configs = {name: Fields(f"{path}: {name}", dict(content[name])) for name in CONFIGS}
        vocabulary = content["tokenizer"]
    except (json.JSONDecodeError, RecursionError, TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: the header's entry {HEADER!r} is damaged ({error}): write it again"
        ) from None
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        file.write_text(json.dumps(vocabulary), encoding="utf-8")
        return from_configs(configs), Tokenizer.load(file)


def has_linear_projection(weights: Weights) -> bool:
    """Whether the U-Net's transformers are wrapped in linear layers, as in Stable Diffusion 2.x."""
    projection = weights.outline.get(f"{compvis.BACKBONE}middle_block.1.proj_in.weight")
    return projection is not None and projection.ndim == 2


def _backbone(weights: Weights, architecture: Architecture) -> Fit:
    spec = architecture.backbone
    rules = compvis.unet_rules(
        levels=spec["transformer"]["levels"],
        blocks=spec["blocks_per_level"],
        linear_projection=has_linear_projection(weights),
    )
    return Fit(spec=spec, weights=weights, rules=rules, prefix=compvis.BACKBONE)


def _left_out(weights: Weights) -> list[str]:
    """Which of the kinds that are left out on purpose the file has.

    Raises:
        ValueError: a tensor that is of no network and of no such kind.
    """
    others = [name for name in weights.outline if not name.startswith(PREFIXES)]
    kinds = [glob for glob in compvis.LEFT_OUT if any(fnmatchcase(name, glob) for name in others)]
    strange = [name for name in others if not any(fnmatchcase(name, glob) for glob in kinds)]
    if strange:
        raise ValueError(f"{weights.path}: unexpected {', '.join(sorted(strange))}")
    return kinds
