"""Files with CompVis' names: a whole pipeline, as Stable Diffusion's and ours, or its autoencoder alone.

The names do not tell the architecture. A file that we wrote carries diffusers' four configs and the tokenizer
in its header; of any other file the caller must say what it is, its shapes must agree, and what it says of
its process and its latents counts.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import content_of, tokenizer_of
from ldm.exchange.architecture import CONFIGS, Architecture, from_configs
from ldm.exchange.clip_import import text_fit
from ldm.exchange.declared import PREDICTION, SCALE, Declared, is_mark, read_declared
from ldm.exchange.dialects import compvis
from ldm.exchange.dialects.clip import text_rules
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule
from ldm.exchange.kinds import refuse_channels
from ldm.exchange.record import restored
from ldm.exchange.settling import refuse_option, settled
from ldm.exchange.weights import Weights
from ldm.io.fields import Fields
from ldm.io.reading import parse_json
from ldm.tokenizers import Tokenizer

HEADER = "ldm"  # the key in a safetensors header
OWN = "ldm."  # before the names of tensors that have no place in CompVis' files
PREFIXES = (compvis.BACKBONE, compvis.AUTOENCODER, compvis.TEXT_ENCODER, compvis.OPENCLIP, OWN)
AVERAGES = f"{compvis.EMA}*"
AUTOENCODER_MARK = "encoder.mid.block_1.conv1.weight"  # diffusers' autoencoders have mid_block there


def is_single_file(weights: Weights) -> bool:
    """Whether a file has the names of a whole pipeline."""
    return _has(weights, compvis.BACKBONE)


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
        architecture, vocabulary, record = _read_header(carried, weights.path)
    else:
        told = read_declared(weights) if trusted else Declared(weights.path)
        _check_sizes(weights, architecture)
        _check_version(weights, told, typed)
        text_state = _text_state(told, text_state)
        architecture, notes = settled(told, architecture, typed=typed)
        vocabulary, record = tokenizer(), None
    left_out = _left_out(weights)
    if weights.renamed:  # the averages are read in place of the weights
        left_out = [f"{compvis.BACKBONE}* of the last step", *(kind for kind in left_out if kind != AVERAGES)]
    elif AVERAGES in left_out:
        notes.append(
            f"{weights.path.name}: the weights of the last step were taken, not their averages, {AVERAGES}: "
            "weights=ema takes those"
        )
    architecture = replace(architecture, linear_projection=_has_linear_projection(weights))
    openclip = _has(weights, compvis.OPENCLIP)
    text = text_fit(
        architecture.text_encoder,
        weights,
        state=text_state,
        prefix=compvis.OPENCLIP if openclip else compvis.TEXT_ENCODER,
        openclip=openclip,
    )
    fits = {
        "backbone": _fit("backbone", architecture, weights),
        "autoencoder": _fit("autoencoder", architecture, weights, drop=compvis.AUTOENCODER_BESIDE),
        "text_encoder": text,
    }
    found = Imported.of(
        fits, tokenizer=vocabulary, settings=architecture.settings(), left_out=left_out, notes=notes
    )
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
    architecture, notes = settled(told.only([SCALE]), architecture, typed=typed)
    drop = (*compvis.AUTOENCODER_BESIDE, *compvis.LEFT_OUT)
    return Imported.of(
        {"autoencoder": replace(_fit("autoencoder", architecture, weights, drop=drop), prefix="")},
        settings={"latents": dict(architecture.latents)},
        left_out=[glob for glob in drop if any(fnmatchcase(name, glob) for name in weights.outline)],
        notes=notes,
    )


def networks(architecture: Architecture) -> dict[str, tuple[str, list[Rule]]]:
    """By the name of each network the prefix of its tensors in a file, and the rules of what follows it."""
    unet = architecture.backbone
    return {
        "backbone": (
            compvis.BACKBONE,
            compvis.unet_rules(
                levels=unet["transformer"]["levels"],
                blocks=unet["blocks_per_level"],
                linear_projection=architecture.linear_projection,
            ),
        ),
        "autoencoder": (
            compvis.AUTOENCODER,
            compvis.vae_rules(num_levels=len(architecture.autoencoder["multipliers"])),
        ),
        "text_encoder": (compvis.TEXT_ENCODER, text_rules()),
    }


def header(configs: Mapping[str, Any], tokenizer: Tokenizer, record: Mapping[str, Any]) -> dict[str, str]:
    """What a safetensors header says of the pipeline in its file."""
    return {HEADER: json.dumps({**configs, "tokenizer": content_of(tokenizer), "record": record})}


def _read_header(text: str, path: Path) -> tuple[Architecture, Tokenizer, Any]:
    """The pipeline and the tokenizer that a header carries, and its record, if there is one."""
    try:
        content = Fields.of(parse_json(text, name="json"), name="it")
        configs = {name: replace(content.mapping(name), name=f"{path}: {name}") for name in CONFIGS}
        tokenizer = tokenizer_of(content.mapping("tokenizer").values, name="its tokenizer")
    except UserError as error:
        raise UserError(
            f"{path}: the header's entry {HEADER!r} is damaged ({error}): write it again"
        ) from None
    return from_configs(configs), tokenizer, content.values.get("record")


def _fit(part: str, architecture: Architecture, weights: Weights, *, drop: Sequence[str] = ()) -> Fit:
    prefix, rules = networks(architecture)[part]
    return Fit(spec=getattr(architecture, part), weights=weights, rules=rules, prefix=prefix, drop=drop)


def _has(weights: Weights, prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights.outline)


def _has_linear_projection(weights: Weights) -> bool:
    """Whether the U-Net's transformers are wrapped in linear layers, as in Stable Diffusion 2.x."""
    projection = weights.outline.get(f"{compvis.BACKBONE}middle_block.1.proj_in.weight")
    return projection is not None and projection.ndim == 2


def _check_sizes(weights: Weights, architecture: Architecture) -> None:
    """Refuses another kind of U-Net in a sentence, before each of its tensors would be one problem."""
    shapes = {name: x.shape for name, x in weights.outline.items() if name.startswith(compvis.BACKBONE)}
    entry = shapes.get(f"{compvis.BACKBONE}input_blocks.0.0.weight", ())
    if len(entry) == 4:
        refuse_channels(weights.path, entry[1], latents=architecture.backbone["latent_channels"])
    keys = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    widths = {shape[1] for shape in keys if len(shape) == 2}
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


def _text_state(told: Declared, typed: str | None) -> str | None:
    """The state of the text encoder that a file says, which one that was typed must be."""
    said: str | None = told.values.get("text_state", typed)
    if typed not in (None, said):
        refuse_option(told, ["text_state"], "text_state", typed)
    return said


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
