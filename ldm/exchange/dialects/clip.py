"""CLIP's towers as others have them: names of tensors and configs of transformers and of open_clip.

OpenAI's own files have the names of open_clip, which took them over.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from ldm import UserError
from ldm.exchange.dialects import arguments
from ldm.exchange.keymap import Rule, merge, rename, renames, transpose
from ldm.io.fields import MAX_DEPTH, MAX_WIDTH, Fields
from ldm.models import clip

TEXT = "ldm.models.clip.TextTransformer"
VISION = "ldm.models.clip.VisionTransformer"
ACTIVATIONS = {"gelu": "ldm.models.clip.gelu", "quick_gelu": "ldm.models.clip.quick_gelu"}

HF_FIXED: dict[str, Any] = {"layer_norm_eps": 1e-05, "attention_dropout": 0.0, "num_channels": 3}
OPENCLIP_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
OPENCLIP_VISION = {"image_size", "patch_size", "width", "head_width", "layers"}
OPENCLIP_ROOT = {"embed_dim", "quick_gelu", "text_cfg", "vision_cfg"}

OPENCLIP_LAYER = {
    "ln_1": "norm1",
    "attn.out_proj": "attention.out",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.wide",
    "mlp.c_proj": "mlp.narrow",
}
LAYER = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.wide",
    "mlp.fc2": "mlp.narrow",
}
COUNTERS = ("*position_ids",)  # 0, 1, 2, ... kept as a weight by earlier versions


def openclip_text_rules(*, ours: str = "", projection: bool = False) -> list[Rule]:
    """Names of the text side of open_clip.CLIP against those of :class:`ldm.models.clip.TextTransformer`."""
    return [
        rename("token_embedding.weight", f"{ours}tokens.weight"),
        rename("positional_embedding", f"{ours}positions"),
        *_openclip_layers("transformer.resblocks", f"{ours}blocks"),
        rename("ln_final.*", f"{ours}norm.*"),
        *[transpose("text_projection", f"{ours}projection.weight")] * projection,
    ]


def openclip_rules() -> list[Rule]:
    """Names of open_clip.CLIP with a vision transformer against those of :class:`ldm.models.clip.CLIP`."""
    return [
        *openclip_text_rules(ours="text.", projection=True),
        *renames({"conv1": "patches", "ln_pre": "norm_in", "ln_post": "norm_out"}, "visual.", "image."),
        rename("visual.class_embedding", "image.class_token"),
        rename("visual.positional_embedding", "image.positions"),
        *_openclip_layers("visual.transformer.resblocks", "image.blocks"),
        transpose("visual.proj", "image.projection.weight"),
        rename("logit_scale", "logit_scale"),
    ]


def text_rules(*, prefix: str = "text_model.", ours: str = "", projection: bool = False) -> list[Rule]:
    """Names of CLIPTextModel against those of :class:`ldm.models.clip.TextTransformer`.

    Args:
        prefix: of their names; transformers 5 writes none, all others and diffusers folders `text_model.`.
        ours: prefix of our names.
        projection: whether there is a text_projection, as in CLIPModel.
    """
    return [
        rename(f"{prefix}embeddings.token_embedding.weight", f"{ours}tokens.weight"),
        rename(f"{prefix}embeddings.position_embedding.weight", f"{ours}positions"),
        *_layers(f"{prefix}encoder.layers", f"{ours}blocks"),
        rename(f"{prefix}final_layer_norm.*", f"{ours}norm.*"),
        *[rename("text_projection.weight", f"{ours}projection.weight")] * projection,
    ]


def text_prefix(names: Iterable[str]) -> str:
    """Which of the two prefixes a text encoder's file has."""
    return "text_model." if any(name.startswith("text_model.") for name in names) else ""


def vision_rules(*, ours: str = "") -> list[Rule]:
    """Names of CLIPModel's vision_model against those of :class:`ldm.models.clip.VisionTransformer`."""
    outer = {"embeddings.patch_embedding": "patches", "pre_layrnorm": "norm_in", "post_layernorm": "norm_out"}
    return [
        *renames(outer, "vision_model.", ours),  # pre_layrnorm is their spelling
        rename("vision_model.embeddings.class_embedding", f"{ours}class_token"),
        rename("vision_model.embeddings.position_embedding.weight", f"{ours}positions"),
        *_layers("vision_model.encoder.layers", f"{ours}blocks"),
        rename("visual_projection.weight", f"{ours}projection.weight"),
    ]


def activation(name: str) -> dict[str, Any]:
    """The node of an activation function."""
    return {"_target_": ACTIVATIONS[name], "_partial_": True}


def hf_text_spec(fields: Fields, *, embed_dim: int | None = None) -> dict[str, Any]:
    """Text tower of a CLIPTextConfig; without `embed_dim` it has no projection.

    Raises:
        UserError: a field that our network has no option for, or a number out of range.
    """
    return {"_target_": TEXT, **_hf_tower(fields, embed_dim, width=512, heads=8)} | {
        "vocab_size": fields.whole("vocab_size", 49_408, high=MAX_WIDTH),
        "context_length": fields.whole("max_position_embeddings", 77, high=MAX_WIDTH),
    }


def hf_vision_spec(fields: Fields, *, embed_dim: int) -> dict[str, Any]:
    """Image tower of a CLIPVisionConfig.

    Raises:
        UserError: a field that our network has no option for, or a number out of range.
    """
    return {"_target_": VISION, **_hf_tower(fields, embed_dim, width=768, heads=12)} | {
        "image_size": fields.whole("image_size", 224, high=MAX_WIDTH),
        "patch_size": fields.whole("patch_size", 32, high=MAX_WIDTH),
    }


def hf_text_config(spec: Mapping[str, Any], *, pad_id: int) -> dict[str, Any]:
    """CLIPTextModel's config for a text tower of ours; its projection has no place there.

    Raises:
        UserError: an activation that transformers doesn't have under a name of ours.
    """
    net = arguments(spec, target=TEXT, what="the text encoder")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        **{key: HF_FIXED[key] for key in ("layer_norm_eps", "attention_dropout")},
        "vocab_size": net["vocab_size"],
        "max_position_embeddings": net["context_length"],
        "hidden_size": net["width"],
        "intermediate_size": 4 * net["width"],
        "projection_dim": net["embed_dim"] or net["width"],
        "num_hidden_layers": net["num_layers"],
        "num_attention_heads": net["num_heads"],
        "hidden_act": _activation_name(net["activation"]),
        "bos_token_id": net["vocab_size"] - 2,
        "eos_token_id": net["vocab_size"] - 1,
        "pad_token_id": pad_id,
    }


def openclip_specs(fields: Fields, *, quick_gelu: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Text and image tower of one of open_clip's model configs.

    Args:
        quick_gelu: whatever the config says, as for OpenAI's own weights.

    Raises:
        UserError: a field that our networks have no option for, or a number out of range.
    """
    fields.known(OPENCLIP_ROOT)
    text, vision = (fields.mapping(key, {}) for key in ("text_cfg", "vision_cfg"))
    text.known(OPENCLIP_TEXT)
    vision.known(OPENCLIP_VISION)
    whole = partial(Fields.whole, high=MAX_WIDTH)
    quick = quick_gelu or fields.flag("quick_gelu")
    shared = {
        "embed_dim": whole(fields, "embed_dim"),
        "activation": activation("quick_gelu" if quick else "gelu"),
    }
    width = whole(vision, "width", 768)
    return {
        "_target_": TEXT,
        "vocab_size": whole(text, "vocab_size", 49_408),
        "context_length": whole(text, "context_length", 77),
        "width": whole(text, "width", 512),
        "num_layers": text.whole("layers", 12, high=MAX_DEPTH),
        "num_heads": whole(text, "heads", 8),
        **shared,
    }, {
        "_target_": VISION,
        "image_size": whole(vision, "image_size", 224),
        "patch_size": whole(vision, "patch_size", 16),
        "width": width,
        "num_layers": vision.whole("layers", 12, high=MAX_DEPTH),
        "num_heads": max(1, width // whole(vision, "head_width", 64)),
        **shared,
    }


def openclip_config(name: str) -> Fields:
    """The config of a model of open_clip, from its wheel or from a json file.

    Raises:
        UserError: there is no such model.
    """
    if name.endswith(".json"):
        return Fields.read(Path(name))
    try:
        listed = files("open-clip-torch") or []
    except PackageNotFoundError:
        listed = []
    found = {Path(str(file)).stem: file for file in listed if file.parent.name == "model_configs"}
    if name not in found:
        known = ", ".join(sorted(each for each in found if each.startswith("ViT-")))
        raise UserError(f"open_clip has no model {name!r}; those of our kind are among {known}")
    return Fields.read(Path(str(found[name].locate())))


def _hf_tower(fields: Fields, embed_dim: int | None, *, width: int, heads: int) -> dict[str, Any]:
    """What both towers share; `width` and `heads` are transformers' defaults, which its configs may omit."""
    fields.only(HF_FIXED)
    inner = fields.whole("intermediate_size", 4 * width, high=4 * MAX_WIDTH)
    width = fields.whole("hidden_size", width, high=MAX_WIDTH)
    if inner != 4 * width:
        raise UserError(f"{fields.name}: intermediate_size must be four times hidden_size, as ours is")
    return {
        "width": width,
        "num_layers": fields.whole("num_hidden_layers", 12, high=MAX_DEPTH),
        "num_heads": fields.whole("num_attention_heads", heads, high=MAX_WIDTH),
        "embed_dim": embed_dim,
        "activation": activation(
            fields.choice("hidden_act", {name: name for name in ACTIVATIONS}, "quick_gelu")
        ),
    }


def _activation_name(node: Any) -> str:
    """transformers' name of an activation, given as a node or as the function itself."""
    functions = {clip.gelu: "gelu", clip.quick_gelu: "quick_gelu"}
    if isinstance(node, Mapping):
        targets = {target: name for name, target in ACTIVATIONS.items()}
        name = targets.get(str(node.get("_target_")))
    else:
        name = functions.get(node)
    if name is None:
        raise UserError(f"the text encoder's activation {node} has no name in transformers, gelu has one")
    return name


def _openclip_layers(theirs: str, ours: str) -> list[Rule]:
    return [
        *renames(OPENCLIP_LAYER, f"{theirs}.{{}}.", f"{ours}.{{}}."),
        rename(f"{theirs}.{{}}.attn.in_proj_*", f"{ours}.{{}}.attention.qkv.*"),  # rows q, k, v in both
    ]


def _layers(theirs: str, ours: str) -> list[Rule]:
    return [
        *renames(LAYER, f"{theirs}.{{}}.", f"{ours}.{{}}."),
        merge([f"{theirs}.{{}}.self_attn.{x}_proj.*" for x in "qkv"], f"{ours}.{{}}.attention.qkv.*"),
    ]
