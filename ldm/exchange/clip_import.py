"""The towers of a foreign CLIP as parts of a bundle: OpenAI's, open_clip's and transformers' files."""

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.checkpoints.bundle import Part
from ldm.exchange.clip_configs import (
    hf_text_spec,
    hf_vision_spec,
    openclip_config,
    openclip_specs,
)
from ldm.exchange.clip_names import COUNTERS, openclip_rules, text_rules, vision_rules
from ldm.exchange.hub import Source
from ldm.exchange.imported import Imported, read_parts
from ldm.exchange.keymap import Rule, rename
from ldm.exchange.text_states import text_fit
from ldm.exchange.weights import Fit, Weights
from ldm.fields import MAX_WIDTH, Fields
from ldm.tokenizers import CLIP_VOCAB_SIZE, Tokenizer, clip_bpe

# what TorchScript files keep beside the weights: three numbers in OpenAI's, the causal mask in open_clip's
BESIDE = ("input_resolution", "context_length", "vocab_size", "attn_mask")
TEXT_PROJECTION, PICTURE_PROJECTION = "text_projection.weight", "visual_projection.weight"  # transformers'


def is_openclip(weights: Weights) -> bool:
    """Whether a file has OpenAI's and open_clip's names."""
    return {"text_projection", "visual.proj"} <= weights.outline.keys()


def import_openclip(source: Source, weights: Weights, *, model: str | None) -> Imported:
    """The towers of a file of OpenAI's or open_clip's.

    Args:
        model: name of open_clip's model or a json file with its config; a tag tells its own.

    Raises:
        ValueError: no model, or one that our networks or the weights don't fit.
    """
    name = source.model or model
    if name is None:
        raise ValueError(
            f"from={source.name} is a CLIP; its tensors don't tell which one: write architecture=ViT-B-32, "
            "or architecture=ViT-B-32-quickgelu for OpenAI's own"
        )
    text, image = openclip_specs(openclip_config(name), quick_gelu=source.quick_gelu)
    if source.pixels is not None:
        image["pixels"] = list(source.pixels)
    return _towers(weights, text, image, rules=openclip_rules(), drop=BESIDE)


def import_transformers(weights: Weights, config: Fields) -> Imported:
    """The towers of a CLIPModel.

    Raises:
        ValueError: a config that our networks or the weights don't fit.
    """
    embed_dim = _embed_dim(config)
    text, image = (
        Fields(f"{config.name}: {name}", config.values.get(name) or {})
        for name in ("text_config", "vision_config")
    )
    return _towers(
        weights,
        hf_text_spec(text, embed_dim=embed_dim),
        hf_vision_spec(image, embed_dim=embed_dim),
        rules=[
            *text_rules(ours="text.", projection=True),
            *vision_rules(ours="image."),
            rename("logit_scale", "logit_scale"),
        ],
        drop=COUNTERS,
    )


def import_text(weights: Weights, config: Fields, *, state: str | None) -> Imported:
    """The text tower of a CLIPTextModel, with its projection where the file has one.

    Args:
        state: last or penultimate, of the states that a denoiser reads.

    Raises:
        ValueError: a config that our network or the weights don't fit.
    """
    embed_dim = _embed_dim(config) if TEXT_PROJECTION in weights.outline else None
    fits = {"text_encoder": text_fit(hf_text_spec(config, embed_dim=embed_dim), weights, state=state)}
    spec = fits["text_encoder"].spec
    tokenizer = own_tokenizer(spec, pad_id=spec["vocab_size"] - 1)  # Stable Diffusion's padding
    return Imported.of(fits, tokenizer=tokenizer)


def import_vision(weights: Weights, config: Fields) -> Imported:
    """The image tower of a CLIPVisionModelWithProjection.

    Raises:
        ValueError: one without its projection, or a config that our network or the weights don't fit.
    """
    if PICTURE_PROJECTION not in weights.outline:
        raise ValueError(
            f"{weights.path} lacks {PICTURE_PROJECTION}, which leads to the space of CLIP's features: "
            "take a CLIPVisionModelWithProjection or a whole CLIPModel"
        )
    spec = hf_vision_spec(config, embed_dim=_embed_dim(config))
    fits = {"image_encoder": Fit(spec=spec, weights=weights, rules=vision_rules(), drop=COUNTERS)}
    return Imported.of(fits)


def own_tokenizer(text: Mapping[str, Any], *, pad_id: int = 0) -> Tokenizer | None:
    """CLIP's own tokenizer for a text tower of its vocabulary; None for another vocabulary."""
    if text["vocab_size"] != CLIP_VOCAB_SIZE:
        return None
    return clip_bpe(context_length=text["context_length"], pad_id=pad_id)


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
    whole = read_parts({"clip": Fit(spec=spec, weights=weights, rules=rules, drop=drop)})["clip"]
    parts = {
        f"{name}_encoder": Part(
            spec=tower,
            state={
                key.removeprefix(f"{name}."): tensor
                for key, tensor in whole.state.items()
                if key.startswith(f"{name}.")
            },
        )
        for name, tower in (("text", text), ("image", image))
    }
    return Imported(
        parts=parts,
        tokenizer=own_tokenizer(text),
        files=weights.files,
        left_out=["logit_scale"],
        notes=weights.notes,
    )
