"""The towers of a foreign CLIP as parts of a bundle: OpenAI's, open_clip's and transformers' files.

A text encoder of Stable Diffusion is CLIP's text tower, of which a denoiser reads the states of the last
layer (1.x) or of the one before (2.x).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ldm import UserError
from ldm.checkpoints.bundle import Part
from ldm.exchange.dialects import clip
from ldm.exchange.hub import Source
from ldm.exchange.imported import Fit, Imported
from ldm.exchange.keymap import Rule, rename
from ldm.exchange.weights import Weights
from ldm.io.fields import MAX_WIDTH, Fields
from ldm.tokenizers import CLIP_VOCAB_SIZE, Tokenizer, clip_bpe

# what TorchScript files keep beside the weights: three numbers in OpenAI's, the causal mask in open_clip's
BESIDE = ("input_resolution", "context_length", "vocab_size", "attn_mask")
OPENAI = {"input_resolution", "context_length", "vocab_size"}
OPENCLIP_CONFIG, PREPROCESSOR = "open_clip_config.json", "preprocessor_config.json"  # beside weights of a hub
OPENCLIP_BESIDE = ("text_projection", "logit_scale", "attn_mask")  # of a text encoder within another file
STATES = ("last", "penultimate")
TEXT_PROJECTION, PICTURE_PROJECTION = "text_projection.weight", "visual_projection.weight"  # transformers'


def is_openclip(weights: Weights) -> bool:
    """Whether a file has OpenAI's and open_clip's names."""
    return {"text_projection", "visual.proj"} <= weights.outline.keys()


def import_openclip(source: Source, weights: Weights, *, model: str | None) -> Imported:
    """The towers of a file of OpenAI's or open_clip's.

    Args:
        model: name of open_clip's model or a json file with its config; a tag tells its own.

    Raises:
        UserError: no model, or one that our networks or the weights don't fit, or that the file or the
            config beside it contradicts.
    """
    name = source.model or model
    config = clip.openclip_config(name) if name is not None else None
    pixels, beside = source.pixels, weights.path.parent / OPENCLIP_CONFIG
    if beside.is_file() and source.model is None:
        own = Fields.read(beside)
        if config is not None and clip.openclip_specs(config) != clip.openclip_specs(
            own.mapping("model_cfg")
        ):
            raise UserError(f"{beside} is of another model than architecture={name}: leave it out")
        config, pixels = own.mapping("model_cfg"), _pixels(own.mapping("preprocess_cfg"), "mean", "std")
    if config is None:
        raise UserError(
            f"from={source.name} is a CLIP; its tensors don't tell which one: write architecture=ViT-B-32, "
            "or architecture=ViT-B-32-quickgelu for OpenAI's own"
        )
    text, image = clip.openclip_specs(config, quick_gelu=source.quick_gelu)
    if weights.outline.keys() >= OPENAI and text["activation"] != clip.activation("quick_gelu"):
        raise UserError(
            f"{weights.path} is OpenAI's own CLIP, trained with quick_gelu, but architecture={name} has "
            f"gelu: write architecture={name}-quickgelu"
        )
    if pixels is not None:
        image["pixels"] = list(pixels)
    return _towers(weights, text, image, rules=clip.openclip_rules(), drop=BESIDE)


def import_transformers(weights: Weights, config: Fields) -> Imported:
    """The towers of a CLIPModel.

    Raises:
        UserError: a config that our networks or the weights don't fit.
    """
    embed_dim = _embed_dim(config)
    text, image = (config.mapping(name, {}) for name in ("text_config", "vision_config"))
    return _towers(
        weights,
        clip.hf_text_spec(text, embed_dim=embed_dim),
        _vision_spec(weights, image, embed_dim=embed_dim),
        rules=[
            *clip.text_rules(ours="text.", projection=True),
            *clip.vision_rules(ours="image."),
            rename("logit_scale", "logit_scale"),
        ],
        drop=clip.COUNTERS,
    )


def import_text(weights: Weights, config: Fields, *, state: str | None) -> Imported:
    """The text tower of a CLIPTextModel, with its projection where the file has one.

    Args:
        state: last or penultimate, of the states that a denoiser reads.

    Raises:
        UserError: a config that our network or the weights don't fit.
    """
    embed_dim = _embed_dim(config) if TEXT_PROJECTION in weights.outline else None
    fits = {"text_encoder": text_fit(clip.hf_text_spec(config, embed_dim=embed_dim), weights, state=state)}
    spec = fits["text_encoder"].spec
    tokenizer = own_tokenizer(spec, pad_id=spec["vocab_size"] - 1)  # Stable Diffusion's padding
    return Imported.of(fits, tokenizer=tokenizer)


def import_vision(weights: Weights, config: Fields) -> Imported:
    """The image tower of a CLIPVisionModelWithProjection.

    Raises:
        UserError: one without its projection, or a config that our network or the weights don't fit.
    """
    if PICTURE_PROJECTION not in weights.outline:
        raise UserError(
            f"{weights.path} lacks {PICTURE_PROJECTION}, which leads to the space of CLIP's features: "
            "take a CLIPVisionModelWithProjection or a whole CLIPModel"
        )
    spec = _vision_spec(weights, config, embed_dim=_embed_dim(config))
    fits = {"image_encoder": Fit(spec=spec, weights=weights, rules=clip.vision_rules(), drop=clip.COUNTERS)}
    return Imported.of(fits)


def text_fit(
    spec: Mapping[str, Any], weights: Weights, *, state: str | None, prefix: str = "", openclip: bool = False
) -> Fit:
    """A text encoder and the file that holds it, in transformers' names or in open_clip's.

    The penultimate state is that of a network without its last layer: the final norm follows either
    (Stable Diffusion 2.x is trained so).

    Args:
        state: last or penultimate; None is what the names mean: open_clip's are of Stable Diffusion 2.x.
        prefix: of the encoder's tensors among others in the file.
        openclip: whether the names are open_clip's.

    Raises:
        UserError: another state, or a network that has no layer to leave out.
    """
    state = state or ("penultimate" if openclip else "last")
    if state not in STATES:
        raise UserError(f"text_state={state} is unknown: write {' or '.join(STATES)}")
    layers = spec["num_layers"]
    if state == "penultimate" and layers < 2:
        raise UserError("text_state=penultimate wants a text encoder of two layers or more: write last")
    kept = layers - (state == "penultimate")
    if openclip:
        blocks, rules, beside = "transformer.resblocks", clip.openclip_text_rules(), OPENCLIP_BESIDE
    else:
        names = clip.text_prefix(
            name.removeprefix(prefix) for name in weights.outline if name.startswith(prefix)
        )
        rules = clip.text_rules(prefix=names, projection=spec.get("embed_dim") is not None)
        blocks, beside = f"{names}encoder.layers", clip.COUNTERS
    unread = [f"{blocks}.{layer}.*" for layer in range(kept, layers)]  # which some files lack
    return Fit(
        spec={**spec, "num_layers": kept},
        weights=weights,
        rules=rules,
        prefix=prefix,
        drop=[*beside, *unread],
    )


def own_tokenizer(text: Mapping[str, Any], *, pad_id: int = 0) -> Tokenizer | None:
    """CLIP's own tokenizer for a text tower of its vocabulary; None for another vocabulary."""
    if text["vocab_size"] != CLIP_VOCAB_SIZE:
        return None
    return clip_bpe(context_length=text["context_length"], pad_id=pad_id)


def _vision_spec(weights: Weights, config: Fields, *, embed_dim: int) -> dict[str, Any]:
    """The image tower, for pictures as the preprocessor's config beside the weights has them."""
    spec, path = clip.hf_vision_spec(config, embed_dim=embed_dim), weights.path.parent / PREPROCESSOR
    pixels = _pixels(Fields.read(path), "image_mean", "image_std") if path.is_file() else None
    return spec if pixels is None else spec | {"pixels": list(pixels)}


def _pixels(config: Fields, mean: str, std: str) -> tuple[list[float], list[float]] | None:
    """Mean and deviation of each colour, in units of [0, 1]; None where a config doesn't say them."""
    if config.values.get(mean) is None or config.values.get(std) is None:
        return None
    values = config.numbers(mean, low=0, high=1), config.numbers(std, low=1e-3, high=1)
    if any(len(each) != 3 for each in values):
        raise UserError(f"{config.name}: {mean} and {std} must have 3 numbers, one for each colour")
    return values


def _embed_dim(config: Fields) -> int:
    return config.whole("projection_dim", 512, high=MAX_WIDTH)


def _towers(
    weights: Weights,
    text: dict[str, Any],
    image: dict[str, Any],
    *,
    rules: Sequence[Rule],
    drop: Sequence[str],
) -> Imported:
    spec = {"_target_": "ldm.models.clip.CLIP", "text": text, "image": image}
    fit = Fit(spec=spec, weights=weights, rules=rules, drop=drop)
    whole = Imported.of({"clip": fit}, tokenizer=own_tokenizer(text), left_out=["logit_scale"])
    state, parts = whole.parts["clip"].state, {}
    for name, tower in (("text", text), ("image", image)):
        own = {key.removeprefix(f"{name}."): x for key, x in state.items() if key.startswith(f"{name}.")}
        parts[f"{name}_encoder"] = Part(spec=tower, state=own)
    return replace(whole, parts=parts)
