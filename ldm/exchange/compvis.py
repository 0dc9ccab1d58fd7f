"""Files with CompVis' names: a whole pipeline such as Stable Diffusion, or its autoencoder alone.

A file that we wrote has diffusers' four configs and the tokenizer in its header. For any other file the
caller gives the architecture, with which its shapes must agree; what it declares about its process and its
latents replaces the caller's.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import tokenizer_of
from ldm.exchange.clip import text_fit
from ldm.exchange.declared import PREDICTION, SCALE, Asked, chosen, is_mark, read_declared, settled
from ldm.exchange.diffusers import CONFIGS, Architecture, from_configs, refuse_channels
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule
from ldm.exchange.names import compvis_unet_rules, compvis_vae_rules, text_rules
from ldm.exchange.weights import Weights
from ldm.io.reading import Fields, parse_json
from ldm.tokenizers import Tokenizer

BACKBONE, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."  # the text encoder of Stable Diffusion 2.x
HEADER, OWN = "ldm", "ldm."  # our key in a safetensors header, and the prefix of the record's tensors
PREFIXES = (BACKBONE, AUTOENCODER, TEXT_ENCODER, OPENCLIP, OWN)
AUTOENCODER_MARK = "encoder.mid.block_1.conv1.weight"  # diffusers' name has mid_block
AUTOENCODER_BESIDE = ("loss.*",)  # the discriminator of the autoencoder's training
EMA = "model_ema."  # prefix of the U-Net's EMA weights
# the EMA, unless it is asked for, and noise tables and losses, which follow from the process
LEFT_OUT = (
    *(f"{EMA}*", "betas", "alphas_cumprod*", "sqrt_*", "log_one_minus_alphas_cumprod"),
    *("posterior_*", "lvlb_weights", "logvar", "scale_factor"),
)


def averages(names: Iterable[str]) -> dict[str, str]:
    """The U-Net's weights among the names of a file, by the name of their EMA: without `model.` and dots."""
    weights = [name for name in names if name.startswith(BACKBONE)]
    return {EMA + name.removeprefix("model.").replace(".", ""): name for name in weights}


def import_single_file(weights: Weights, asked: Asked) -> Imported:
    """The pipeline in a file."""
    architecture, text_state, own = asked.architecture, asked.text_state, weights.metadata.get(HEADER)
    openclip, record, notes = weights.has(OPENCLIP), None, []
    if own is not None:
        architecture, vocabulary, record = _read_header(own, weights)
    else:
        declared = read_declared(weights, trusted=asked.trusted)
        _check_sizes(weights, architecture)
        # with equal tensors, some models of Stable Diffusion 2.x predict noise and some v
        if openclip and PREDICTION not in declared.values and "process" not in asked.typed:
            raise UserError(
                f"{weights.path} is a Stable Diffusion 2.x and does not declare its prediction: put its yaml "
                "beside it, or write process=sd2_v for one of 768 px, process=sd15 for a base of 512 px"
            )
        vocabulary, text_state = asked.tokenizer(), declared.values.get("text_state", text_state)
        if asked.text_state not in (None, text_state):
            declared.refuse(["text_state"], "text_state", asked.text_state)
        architecture, notes = settled(declared, asked)
    projection = weights.outline.get(f"{BACKBONE}middle_block.1.proj_in.weight")
    linear = projection is not None and projection.ndim == 2  # as in Stable Diffusion 2.x
    architecture = replace(architecture, linear_projection=linear)
    prefix = OPENCLIP if openclip else TEXT_ENCODER
    fits = {
        "backbone": _fit("backbone", architecture, weights),
        "autoencoder": replace(_fit("autoencoder", architecture, weights), drop=AUTOENCODER_BESIDE),
        "text_encoder": text_fit(
            architecture.text_encoder, weights, state=text_state, prefix=prefix, openclip=openclip
        ),
    }
    left_out, taken = _left_out(weights)
    found = Imported.of(
        fits, tokenizer=vocabulary, settings=architecture.settings(), left_out=left_out, notes=notes + taken
    )
    if record is not None:
        kept = weights.load(only={name for name in weights.outline if name.startswith(OWN)})
        tensors = {name.removeprefix(OWN): tensor for name, tensor in kept.items()}
        found = found.restored(record, tensors, where=f"{weights.path}: the record in its header")
    return found if own is None else replace(found, settings=chosen(found.settings, asked, weights.path))


def import_autoencoder(weights: Weights, asked: Asked) -> Imported:
    """The autoencoder of a file and the scale of its latents."""
    declared = read_declared(weights, trusted=asked.trusted)
    architecture, notes = settled(declared.only([SCALE]), asked)
    drop = (*AUTOENCODER_BESIDE, *LEFT_OUT)
    fit = replace(_fit("autoencoder", architecture, weights), prefix="", drop=drop)
    settings = {"latents": dict(architecture.latents)}
    return Imported.of({"autoencoder": fit}, settings=settings, left_out=fit.left_out, notes=notes)


def networks(architecture: Architecture) -> dict[str, tuple[str, list[Rule]]]:
    """The prefix of each network's tensors in a file, and the rules for the names behind it."""
    unet, levels = architecture.backbone, len(architecture.autoencoder["multipliers"])
    rules = compvis_unet_rules(
        levels=unet["transformer"]["levels"],
        blocks=unet["blocks_per_level"],
        linear_projection=architecture.linear_projection,
    )
    return {
        "backbone": (BACKBONE, rules),
        "autoencoder": (AUTOENCODER, compvis_vae_rules(num_levels=levels)),
        "text_encoder": (TEXT_ENCODER, text_rules()),
    }


def header(configs: Mapping[str, Any], tokenizer: Tokenizer, record: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a safetensors header that describe the pipeline in the file."""
    return {HEADER: json.dumps({**configs, "tokenizer": tokenizer.content(), "record": record})}


def _read_header(text: str, weights: Weights) -> tuple[Architecture, Tokenizer, Any]:
    """The pipeline and the tokenizer in a header, and its record, if there is one."""
    path = weights.path
    try:
        content = Fields.of(parse_json(text, name="json"), name="it")
        configs = {name: replace(content.mapping(name), name=f"{path}: {name}") for name in CONFIGS}
        tokenizer = tokenizer_of(content.mapping("tokenizer").values, name="its tokenizer")
    except UserError as error:
        raise UserError(f"{path}: the header's entry {HEADER!r} is damaged ({error}): export again") from None
    return from_configs(configs), tokenizer, content.values.get("record")


def _fit(part: str, architecture: Architecture, weights: Weights) -> Fit:
    prefix, rules = networks(architecture)[part]
    return Fit(spec=getattr(architecture, part), weights=weights, rules=rules, prefix=prefix)


def _check_sizes(weights: Weights, architecture: Architecture) -> None:
    """Refuses another kind of U-Net in one sentence, instead of one per tensor."""
    shapes = {name: x.shape for name, x in weights.outline.items() if name.startswith(BACKBONE)}
    entry = shapes.get(f"{BACKBONE}input_blocks.0.0.weight", ())
    if len(entry) == 4:
        refuse_channels(weights.path, entry[1], latents=architecture.backbone["latent_channels"])
    keys = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight"))
    widths = {shape[1] for shape in keys if len(shape) == 2}
    expected = architecture.backbone["transformer"]["context_dim"]
    if len(widths) == 1 and widths != {expected}:
        raise UserError(
            f"{weights.path}: its U-Net reads text states of width {widths.pop()}, backbone= has {expected}; "
            "for Stable Diffusion 2.x (1024) write backbone=unet_sd2 text_encoder=sd2 tokenizer=sd2"
        )


def _left_out(weights: Weights) -> tuple[list[str], list[str]]:
    """The globs of LEFT_OUT that occur in a file, and a note if the EMA is among them."""
    others = [name for name in weights.outline if not name.startswith(PREFIXES) and not is_mark(name)]
    kinds = [glob for glob in LEFT_OUT if any(fnmatchcase(name, glob) for name in others)]
    if strange := [name for name in others if not any(fnmatchcase(name, glob) for glob in kinds)]:
        raise UserError(f"{weights.path}: unexpected {', '.join(sorted(strange))}")
    averaged = f"{EMA}*"
    if weights.renamed:  # the averages are read in place of the weights
        return [f"{BACKBONE}* of the last step", *(kind for kind in kinds if kind != averaged)], []
    note = (
        f"{weights.path.name}: the weights of the last step were read, not their EMA, {averaged}: "
        "weights=ema reads that"
    )
    return kinds, [note] * (averaged in kinds)
