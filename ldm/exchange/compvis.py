"""Files with CompVis' names: a whole pipeline such as Stable Diffusion, or its autoencoder alone.

A file that we wrote has diffusers' four configs and the tokenizer in its header. For any other file the
caller gives the architecture, with which its shapes must agree; what it declares about its process and its
latents replaces what the user did not type, and must agree with what was typed.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import tokenizer_of
from ldm.exchange.clip import text_fit
from ldm.exchange.declared import (
    HEADS,
    PREDICTION,
    SCALE,
    SCHEDULER,
    ZERO_SNR,
    Declared,
    agree,
    in_words,
    is_mark,
    read_declared,
)
from ldm.exchange.diffusers import CONFIGS, Architecture, from_configs, refuse_channels
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule
from ldm.exchange.names import compvis_unet_rules, compvis_vae_rules, text_rules
from ldm.exchange.schedulers import process_fields, process_spec, sampling_spec
from ldm.exchange.weights import Weights
from ldm.io.fields import Fields
from ldm.io.reading import parse_json
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


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The user's options of an import."""

    architecture: Architecture  # of a file with CompVis' names, unless the file has its own
    tokenizer: Callable[[], Tokenizer]  # likewise
    clip: str | None = None  # open_clip's name of the model in a file of CLIP's weights
    # the text encoder's state that the denoiser reads, last or penultimate; None is the file's declaration,
    # else what Stable Diffusion of its version reads
    text_state: str | None = None
    context_length: int | None = None  # tokens that a BERT reads of a text; None: see `import_bert`
    averaged: bool = False  # whether to read the EMA weights that a training's file holds beside the others
    typed: Collection[str] = ()  # the options that were typed: process, latent_scale, sampler, size
    trusted: bool = True  # whether the file's declaration counts


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


def compare(declared: Declared, asked: Asked) -> list[str]:
    """The fields of the process that differ from the options; a typed option must agree."""
    architecture, typed = asked.architecture, asked.typed
    own, scale = _fields(architecture.process), architecture.latents["scale"][0]
    different = [n for n in declared.only(SCHEDULER).values if not agree(own.get(n), declared.values[n])]
    if different and "process" in typed:
        words = in_words(own, [name for name in different if name in own])
        declared.refuse(different, "process", words or architecture.process["schedule"]["_target_"])
    if "latent_scale" in typed and not agree(scale, declared.values.get(SCALE, scale)):
        declared.refuse([SCALE], "latent_scale", scale)
    for name, ours in HEADS.items():  # the shapes of the weights do not depend on these
        heads = architecture.backbone["transformer"].get(ours)
        if declared.values.get(name, heads) != heads:
            raise UserError(
                f"{declared.path} declares {declared.phrase([name])}, but backbone.transformer.{ours} is "
                f"{heads}: choose the backbone= that has it"
            )
    return different


def settled(declared: Declared, asked: Asked) -> tuple[Architecture, list[str]]:
    """The user's architecture with a file's declaration in place of untyped options, and a note on it."""
    architecture, typed, values = asked.architecture, asked.typed, declared.values
    own = _fields(architecture.process)
    if values.get(ZERO_SNR) and (own | values).get(PREDICTION) == "epsilon":
        if PREDICTION in values:
            raise UserError(
                f"{declared.path} contradicts itself: {declared.phrase([PREDICTION, ZERO_SNR])}: a prediction"
                " of the noise is useless at pure noise; write declared=ignore and process=sd15 or zero_snr"
            )
        declared.add([(PREDICTION, "v_prediction", f"{declared.places[ZERO_SNR]}, which rules out noise")])
    changed = compare(declared, asked)
    process, sampler = architecture.process, architecture.sampler
    if changed:
        fields = own | declared.only(SCHEDULER).values
        process = process_spec(Fields(str(declared.path), fields))
        # DDIM, since PNDM of Stable Diffusion 1.x needs a prediction of the noise; from pure noise if the
        # noise table ends there
        spacing = {"timestep_spacing": "trailing"} if fields.get(ZERO_SNR) else {"set_alpha_to_one": False}
        ddim = sampling_spec(Fields("", {"_class_name": "DDIMScheduler", **spacing}))
        sampler = sampler if "sampler" in typed else ddim
    latents, size = dict(architecture.latents), architecture.size
    scale = values.get(SCALE, latents["scale"][0])
    if not agree(latents["scale"][0], scale):
        latents["scale"], changed = [scale] * len(latents["scale"]), [*changed, SCALE]
    if "size" not in typed and values.get("size", size) != size:
        size, changed = values["size"], [*changed, "size"]
    notes = [f"{declared.path.name} declares {declared.phrase(changed)}, which is used"] if changed else []
    return replace(architecture, process=process, sampler=sampler, latents=latents, size=size), notes


def chosen(settings: Mapping[str, Any], asked: Asked, where: Path) -> dict[str, Any]:
    """The settings of a folder or a header with the typed options, which must agree with a trusted one."""
    declared, architecture = Declared(where), asked.architecture
    process, latents = settings.get("process"), settings.get("latents")
    taken = {"sampler": ("sampler", architecture.sampler)}  # option -> entry of the settings and its value
    if not asked.trusted:
        taken["process"] = ("process", architecture.process)
        taken["latent_scale"] = ("latents", dict(architecture.latents))
    elif process and "process" in asked.typed:
        declared.add((*each, "its scheduler") for each in process_fields(process).items())
    if asked.trusted and latents:
        scales = latents["scale"]
        declared.add([(SCALE, scales if len(set(scales)) > 1 else scales[0], "its autoencoder")])
    compare(declared, asked)
    names = [option for option, (entry, _) in taken.items() if option in asked.typed and entry in settings]
    return {**settings, **dict(taken[option] for option in names)}


def _fields(process: Mapping[str, Any]) -> dict[str, Any]:
    """A process as a scheduler's fields; empty where diffusers has no fields for it."""
    try:
        return process_fields(process)
    except UserError:
        return {}


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
