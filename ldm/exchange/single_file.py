"""Files with CompVis' names: a whole pipeline, as Stable Diffusion's and ours, or its autoencoder alone.

The names do not tell the architecture. A file that we wrote carries diffusers' four configs and the tokenizer
in its header; of any other file the caller must say what it is, its shapes must agree, and what it says of
its process and its latents counts.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.checkpoints.tokenizer_file import content_of, tokenizer_of
from ldm.exchange.architecture import CONFIGS, Architecture, from_configs
from ldm.exchange.declared import PREDICTION, SCALE, Declared, is_mark, read_declared
from ldm.exchange.dialects import compvis
from ldm.exchange.imported import Imported
from ldm.exchange.kinds import refuse_channels
from ldm.exchange.record import restored
from ldm.exchange.settling import settled
from ldm.exchange.text_states import text_fit
from ldm.exchange.weights import Fit, Weights
from ldm.io.fields import Fields
from ldm.io.reading import parse_json
from ldm.tokenizers import Tokenizer

HEADER = "ldm"  # the key in a safetensors header
OWN = "ldm."  # before the names of tensors that have no place in CompVis' files
PREFIXES = (compvis.BACKBONE, compvis.AUTOENCODER, compvis.TEXT_ENCODER, compvis.OPENCLIP, OWN)
AUTOENCODER_MARK = "encoder.mid.block_1.conv1.weight"  # diffusers' autoencoders have mid_block there
EMA = "model_ema.*"


def is_single_file(weights: Weights) -> bool:
    """Whether a file has the names of a whole pipeline."""
    return any(name.startswith(compvis.BACKBONE) for name in weights.outline)


def is_autoencoder_file(weights: Weights) -> bool:
    """Whether a file has the names of CompVis' autoencoder without a pipeline's prefixes."""
    return AUTOENCODER_MARK in weights.outline


def import_single_file(
    weights: Weights,
    *,
    architecture: Architecture,
    tokenizer: Callable[[], Tokenizer],
    text_state: str | None,
    typed: Collection[str],
    trusted: bool,
) -> Imported:
    """The pipeline of a file.

    Args:
        architecture, tokenizer: of a file that carries none.
        typed: the options that the user typed, which must not contradict what the file says.
        trusted: whether what the file says of itself is read.

    Raises:
        UserError: tensors that don't fit the architecture, a header that is damaged, or a file that says
            other than what was typed.
    """
    carried, notes = weights.metadata.get(HEADER), []
    if carried is not None:
        architecture, vocabulary = _read_header(carried, weights.path)
    else:
        told = read_declared(weights) if trusted else Declared(weights.path)
        _check_sizes(weights, architecture)
        _check_version(weights, told, typed)
        text_state = _text_state(told, text_state)
        architecture, notes = settled(told, architecture, typed=typed)
        vocabulary = tokenizer()
    left_out = _left_out(weights)
    if EMA in left_out:
        notes.append(
            f"{weights.path.name}: the weights of the last step were taken, not their averages, {EMA}"
        )
    openclip = _has(weights, compvis.OPENCLIP)
    fits = {
        "backbone": _backbone(weights, architecture),
        "autoencoder": _autoencoder(weights, architecture, prefix=compvis.AUTOENCODER, drop=["loss.*"]),
        "text_encoder": text_fit(
            architecture.text_encoder,
            weights,
            state=text_state,
            prefix=compvis.OPENCLIP if openclip else compvis.TEXT_ENCODER,
            openclip=openclip,
        ),
    }
    settings = replace(architecture, linear_projection=has_linear_projection(weights)).settings()
    found = Imported.of(fits, tokenizer=vocabulary, settings=settings, left_out=left_out, notes=notes)
    record = json.loads(carried).get("record") if carried is not None else None
    if record is None:
        return found
    own = weights.load(only={name for name in weights.outline if name.startswith(OWN)})
    kept = {name.removeprefix(OWN): tensor for name, tensor in own.items()}
    return restored(found, record, kept, where=f"{weights.path}: the record in its header")


def import_autoencoder(
    weights: Weights, *, architecture: Architecture, typed: Collection[str], trusted: bool
) -> Imported:
    """The autoencoder of a file, and the scale of its latents.

    Args:
        architecture: what the file is of, which its names do not tell.
        typed, trusted: as for a whole pipeline.

    Raises:
        UserError: tensors that don't fit the architecture, or a file that says another scale than was typed.
    """
    told = read_declared(weights) if trusted else Declared(weights.path)
    architecture, notes = settled(told.only(SCALE), architecture, typed=typed)
    drop = (*compvis.AUTOENCODER_BESIDE, *compvis.LEFT_OUT)
    return Imported.of(
        {"autoencoder": _autoencoder(weights, architecture, drop=drop)},
        settings={"latents": dict(architecture.latents)},
        left_out=[glob for glob in drop if any(fnmatchcase(name, glob) for name in weights.outline)],
        notes=notes,
    )


def header(configs: dict[str, Any], tokenizer: Tokenizer, record: dict[str, Any]) -> dict[str, str]:
    """What a safetensors header says of the pipeline in its file."""
    return {HEADER: json.dumps(configs | {"tokenizer": content_of(tokenizer), "record": record})}


def _read_header(text: str, path: Path) -> tuple[Architecture, Tokenizer]:
    try:
        content = Fields.of(parse_json(text, name="json"), name="it")
        configs = {name: replace(content.mapping(name), name=f"{path}: {name}") for name in CONFIGS}
        tokenizer = tokenizer_of(content.mapping("tokenizer").values, name=f"{path}: its tokenizer")
    except UserError as error:
        raise UserError(
            f"{path}: the header's entry {HEADER!r} is damaged ({error}): write it again"
        ) from None
    return from_configs(configs), tokenizer


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


def _autoencoder(
    weights: Weights, architecture: Architecture, *, drop: Sequence[str], prefix: str = ""
) -> Fit:
    spec = architecture.autoencoder
    rules = compvis.vae_rules(num_levels=len(spec["multipliers"]))
    return Fit(spec=spec, weights=weights, rules=rules, prefix=prefix, drop=drop)


def _has(weights: Weights, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights.outline)


def _check_sizes(weights: Weights, architecture: Architecture) -> None:
    """Refuses another kind of U-Net in a sentence, before each of its tensors would be one problem."""
    unet = {
        name.removeprefix(compvis.BACKBONE): tensor.shape
        for name, tensor in weights.outline.items()
        if name.startswith(compvis.BACKBONE)
    }
    entry = unet.get("input_blocks.0.0.weight", ())
    if len(entry) == 4:
        refuse_channels(weights.path, entry[1], latents=architecture.backbone["latent_channels"])
    widths = {
        shape[1] for name, shape in unet.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2
    }
    expected = architecture.backbone["transformer"]["context_dim"]
    if len(widths) == 1 and widths != {expected}:
        raise UserError(
            f"{weights.path}: its U-Net reads text states of width {widths.pop()}, backbone= has {expected}; "
            "a Stable Diffusion 2.x (1024) wants backbone=unet_sd2 text_encoder=sd2 tokenizer=sd2"
        )


def _check_version(weights: Weights, told: Declared, typed: Collection[str]) -> None:
    """Refuses to guess: some of Stable Diffusion 2.x predict noise, some v, with the same tensors."""
    if _has(weights, compvis.OPENCLIP) and PREDICTION not in told.values and "process" not in typed:
        raise UserError(
            f"{weights.path} is of Stable Diffusion 2.x and does not say what it predicts: put its yaml "
            "beside it, or write process=sd2_v for one of 768 px, process=sd15 for a base of 512 px"
        )


def _text_state(told: Declared, asked: str | None) -> str | None:
    said = told.values.get("text_state")
    if said is not None and asked not in (None, said):
        raise UserError(
            f"{told.path} says {told.phrase(['text_state'])}, text_state={asked}: leave it out, or add "
            "declared=ignore if the file is wrong"
        )
    return said or asked


def _left_out(weights: Weights) -> list[str]:
    """Which of the kinds that are left out on purpose the file has.

    Raises:
        UserError: a tensor that is of no network and of no such kind.
    """
    others = [name for name in weights.outline if not name.startswith(PREFIXES) and not is_mark(name)]
    kinds = [glob for glob in compvis.LEFT_OUT if any(fnmatchcase(name, glob) for name in others)]
    strange = [name for name in others if not any(fnmatchcase(name, glob) for glob in kinds)]
    if strange:
        raise UserError(f"{weights.path}: unexpected {', '.join(sorted(strange))}")
    return kinds
