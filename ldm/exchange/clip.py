"""CLIP's towers in the files of OpenAI, open_clip and transformers: their configs and their weights.

A text encoder of Stable Diffusion is CLIP's text tower; the denoiser reads the states of its last layer (1.x)
or of the one before (2.x).
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.construct import NETWORKS, locate
from ldm.exchange import arguments, whole_numbers
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.names import clip_rules, openclip_rules, openclip_text_rules, text_rules, vision_rules
from ldm.exchange.weights import Source, Weights
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.tokenizers import Tokenizer
from ldm.tokenizers.clip_vocabulary import CLIP_VOCAB_SIZE, clip_bpe

Config = dict[str, Any]

TEXT = "ldm.models.clip.TextTransformer"
VISION = "ldm.models.clip.VisionTransformer"
ACTIVATIONS = {"gelu": "ldm.models.clip.gelu", "quick_gelu": "ldm.models.clip.quick_gelu"}
STATES = ("last", "penultimate")

# our options -> their fields, with their defaults
HF_TEXT = {
    "vocab_size": ("vocab_size", 49_408),
    "context_length": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 8),
}
HF_VISION = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 32),
    "width": ("hidden_size", 768),
    "num_layers": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
}
OPENCLIP_TEXT = {
    "vocab_size": ("vocab_size", 49_408),
    "context_length": ("context_length", 77),
    "width": ("width", 512),
    "num_layers": ("layers", 12),
    "num_heads": ("heads", 8),
}
OPENCLIP_VISION = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "width": ("width", 768),
    "num_layers": ("layers", 12),
    "head_width": ("head_width", 64),
}
HF_FIXED: Config = {"layer_norm_eps": 1e-05, "attention_dropout": 0.0, "num_channels": 3}
COUNTERS = ("*position_ids",)  # 0, 1, 2, ... in files of earlier versions of transformers
TEXT_PROJECTION, PICTURE_PROJECTION = "text_projection.weight", "visual_projection.weight"
OPENCLIP_ROOT = {"embed_dim", "quick_gelu", "text_cfg", "vision_cfg"}
OPENCLIP_MARKS = {"text_projection", "visual.proj"}  # tensors in files of OpenAI and open_clip
OPENCLIP_CONFIG, PREPROCESSOR = "open_clip_config.json", "preprocessor_config.json"  # beside weights of a hub
OPENAI = ("input_resolution", "context_length", "vocab_size")  # numbers in OpenAI's TorchScript files
BESIDE = (*OPENAI, "attn_mask")  # tensors of TorchScript files that are no weights
OPENCLIP_BESIDE = ("text_projection", "logit_scale", "attn_mask")  # which a denoiser's text encoder lacks


def hf_text_spec(fields: Fields, *, embed_dim: int | None = None) -> Config:
    """The text tower of a CLIPTextConfig; without `embed_dim` it has no projection."""
    return {"_target_": TEXT, **_hf_tower(fields, HF_TEXT, embed_dim)}


def hf_text_config(spec: Mapping[str, Any], *, pad_id: int) -> Config:
    """CLIPTextModel's config for a text tower of ours, without its projection."""
    net = arguments(spec, target=TEXT, what="the text encoder")
    own = {key: (_activation(key), locate(name, allowed=NETWORKS)) for key, name in ACTIVATIONS.items()}
    if not (names := [name for name, forms in own.items() if net["activation"] in forms]):
        raise UserError(f"the text encoder's activation {net['activation']} is not in transformers, gelu is")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{key: HF_FIXED[key] for key in ("layer_norm_eps", "attention_dropout")},
        **{field: net[option] for option, (field, _) in HF_TEXT.items()},
        "intermediate_size": 4 * net["width"],
        "projection_dim": net["embed_dim"] or net["width"],
        "hidden_act": names[0],
        "bos_token_id": net["vocab_size"] - 2,
        "eos_token_id": net["vocab_size"] - 1,
        "pad_token_id": pad_id,
    }


def openclip_specs(fields: Fields, *, quick_gelu: bool = False) -> tuple[Config, Config]:
    """Text and image tower of one of open_clip's model configs; `quick_gelu` overrides its activation."""
    fields.known(OPENCLIP_ROOT)
    towers = []
    for key, table in (("text_cfg", OPENCLIP_TEXT), ("vision_cfg", OPENCLIP_VISION)):
        tower = fields.mapping(key, {})
        tower.known({field for field, _ in table.values()})
        towers.append(whole_numbers(tower, table))
    text, image = towers
    image["num_heads"] = max(1, image["width"] // image.pop("head_width"))
    name = "quick_gelu" if quick_gelu or fields.flag("quick_gelu") else "gelu"
    embed_dim = fields.whole("embed_dim", high=MAX_WIDTH)
    shared = {"embed_dim": embed_dim, "activation": _activation(name)}
    return {"_target_": TEXT, **text, **shared}, {"_target_": VISION, **image, **shared}


def openclip_config(name: str) -> Fields:
    """The config of a model of open_clip, from open_clip's wheel or from a json file."""
    if name.endswith(".json"):
        return Fields.read(Path(name))
    package = find_spec("open_clip")  # found, but not imported, which takes seconds
    folders = (package and package.submodule_search_locations) or ()
    found = {path.stem: path for folder in folders for path in Path(folder).glob("model_configs/*.json")}
    if name not in found:
        known = ", ".join(sorted(each for each in found if each.startswith("ViT-")))
        raise UserError(f"open_clip has no model {name!r}; those of our kind are among {known}")
    return Fields.read(found[name])


def import_openclip(source: Source, weights: Weights, *, model: str | None) -> Imported:
    """The towers in a file of OpenAI's or open_clip's.

    `model` is open_clip's name of the model, or a json file with its config; a tag does without.
    """
    name = source.model or model
    config = openclip_config(name) if name is not None else None
    pixels, beside = source.pixels, weights.path.parent / OPENCLIP_CONFIG
    if beside.is_file() and source.model is None:
        read = Fields.read(beside)
        own = read.mapping("model_cfg")
        if config is not None and openclip_specs(config) != openclip_specs(own):
            raise UserError(f"{beside} describes another model than architecture={name}: leave it out")
        config, pixels = own, _pixels(read.mapping("preprocess_cfg"), "mean", "std")
    if config is None:
        raise UserError(
            f"from={source.name} is a CLIP without a config: name its model, as in architecture=ViT-B-32, "
            "or architecture=ViT-B-32-quickgelu for OpenAI's own"
        )
    text, image = openclip_specs(config, quick_gelu=source.quick_gelu)
    if weights.outline.keys() >= set(OPENAI) and text["activation"] != _activation("quick_gelu"):
        raise UserError(
            f"{weights.path} is OpenAI's own CLIP, trained with quick_gelu, but architecture={name} has "
            f"gelu: write architecture={name}-quickgelu"
        )
    if pixels is not None:
        image["pixels"] = list(pixels)
    spec = {"_target_": "ldm.models.clip.CLIP", "text": text, "image": image}
    return _towers(Fit(spec=spec, weights=weights, rules=openclip_rules(), drop=BESIDE))


def import_transformers(weights: Weights, config: Fields, _: str | None = None) -> Imported:
    """The towers of a CLIPModel."""
    text, image = (config.mapping(name, {}) for name in ("text_config", "vision_config"))
    spec = {
        "_target_": "ldm.models.clip.CLIP",
        "text": hf_text_spec(text, embed_dim=_embed_dim(config)),
        "image": _vision_spec(weights, image, embed_dim=_embed_dim(config)),
    }
    return _towers(Fit(spec=spec, weights=weights, rules=clip_rules(), drop=COUNTERS))


def import_text(weights: Weights, config: Fields, state: str | None) -> Imported:
    """The text tower of a CLIPTextModel, with its projection if it has one; `state` as in `text_fit`."""
    embed_dim = _embed_dim(config) if TEXT_PROJECTION in weights.outline else None
    fit = text_fit(hf_text_spec(config, embed_dim=embed_dim), weights, state=state)
    tokenizer = _own_tokenizer(fit.spec, pad_id=fit.spec["vocab_size"] - 1)  # Stable Diffusion's padding
    return Imported.of({"text_encoder": fit}, tokenizer=tokenizer)


def import_vision(weights: Weights, config: Fields, _: str | None = None) -> Imported:
    """The image tower of a CLIPVisionModelWithProjection."""
    if PICTURE_PROJECTION not in weights.outline:
        raise UserError(
            f"{weights.path} lacks {PICTURE_PROJECTION}, without which there are no features of CLIP: use a "
            "CLIPVisionModelWithProjection or a whole CLIPModel"
        )
    spec = _vision_spec(weights, config, embed_dim=_embed_dim(config))
    return Imported.of(
        {"image_encoder": Fit(spec=spec, weights=weights, rules=vision_rules(), drop=COUNTERS)}
    )


def text_fit(
    spec: Mapping[str, Any], weights: Weights, *, state: str | None, prefix: str = "", openclip: bool = False
) -> Fit:
    """A text encoder and its file, with transformers' names or open_clip's.

    For the penultimate state the last layer is left out; the final norm follows in both cases, as Stable
    Diffusion 2.x was trained.

    Args:
        state: last or penultimate; None is penultimate for open_clip's names, which are of 2.x, else last.
        prefix: of the encoder's tensors in the file.
        openclip: whether the names are open_clip's.
    """
    state, layers = state or ("penultimate" if openclip else "last"), spec["num_layers"]
    if state not in STATES:
        raise UserError(f"text_state={state} is unknown: write {' or '.join(STATES)}")
    kept = layers - (state == "penultimate")
    if kept < 1:
        raise UserError("text_state=penultimate needs a text encoder with two layers or more: write last")
    if openclip:
        blocks, rules, beside = "transformer.resblocks", openclip_text_rules(), OPENCLIP_BESIDE
    else:
        names = "text_model." * weights.has(f"{prefix}text_model.")
        rules = text_rules(prefix=names, projection=spec.get("embed_dim") is not None)
        blocks, beside = f"{names}encoder.layers", COUNTERS
    drop = [*beside, *(f"{blocks}.{layer}.*" for layer in range(kept, layers))]  # some files lack the layer
    return Fit(spec={**spec, "num_layers": kept}, weights=weights, rules=rules, prefix=prefix, drop=drop)


def _towers(fit: Fit) -> Imported:
    """Both towers of a CLIP, each as a part."""
    tokenizer = _own_tokenizer(fit.spec["text"])
    whole = Imported.of({"clip": fit}, tokenizer=tokenizer, left_out=["logit_scale"])
    state, parts = whole.parts["clip"].state, {}
    for name in ("text", "image"):
        own = {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
        parts[f"{name}_encoder"] = Part(spec=fit.spec[name], state=own)
    return replace(whole, parts=parts)


def _own_tokenizer(text: Mapping[str, Any], *, pad_id: int = 0) -> Tokenizer | None:
    """CLIP's own tokenizer for a text tower with its vocabulary, else None."""
    if text["vocab_size"] != CLIP_VOCAB_SIZE:
        return None
    return clip_bpe(context_length=text["context_length"], pad_id=pad_id)


def _hf_tower(fields: Fields, table: Mapping[str, tuple[str, int]], embed_dim: int | None) -> Config:
    """The options of a tower that text and image tower share."""
    fields.only(HF_FIXED)
    sizes, default = whole_numbers(fields, table), 4 * table["width"][1]
    if fields.whole("intermediate_size", default, high=4 * MAX_WIDTH) != 4 * sizes["width"]:
        raise UserError(f"{fields.name}: intermediate_size must be four times hidden_size, as in ours")
    name = fields.choice("hidden_act", {name: name for name in ACTIVATIONS}, "quick_gelu")
    return {**sizes, "embed_dim": embed_dim, "activation": _activation(name)}


def _vision_spec(weights: Weights, config: Fields, *, embed_dim: int) -> Config:
    """The image tower, with mean and deviation of pictures from the preprocessor's config beside it."""
    spec = {"_target_": VISION, **_hf_tower(config, HF_VISION, embed_dim)}
    path = weights.path.parent / PREPROCESSOR
    pixels = _pixels(Fields.read(path), "image_mean", "image_std") if path.is_file() else None
    return spec if pixels is None else spec | {"pixels": list(pixels)}


def _pixels(config: Fields, mean: str, std: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each colour, in units of [0, 1]; None if the config lacks them."""
    if config.values.get(mean) is None or config.values.get(std) is None:
        return None
    values = config.numbers(mean, low=0, high=1), config.numbers(std, low=1e-3, high=1)
    if any(len(each) != 3 for each in values):
        raise UserError(f"{config.name}: {mean} and {std} must have 3 numbers, one for each colour")
    return values


def _embed_dim(config: Fields) -> int:
    return config.whole("projection_dim", 512, high=MAX_WIDTH)


def _activation(name: str) -> Config:
    return {"_target_": ACTIVATIONS[name], "_partial_": True}
