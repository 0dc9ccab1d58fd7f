"""Names of CLIP's tensors in OpenAI's and open_clip's files and in transformers' against ours."""

from collections.abc import Iterable

from ldm.exchange.keymap import Rule, merge, rename, transpose

OPENCLIP_LAYER = {
    "ln_1.*": "norm1.*",
    "attn.in_proj_*": "attention.qkv.*",  # rows q, k, v in both
    "attn.out_proj.*": "attention.out.*",
    "ln_2.*": "norm2.*",
    "mlp.c_fc.*": "mlp.wide.*",
    "mlp.c_proj.*": "mlp.narrow.*",
}
LAYER = {
    "layer_norm1.*": "norm1.*",
    "self_attn.out_proj.*": "attention.out.*",
    "layer_norm2.*": "norm2.*",
    "mlp.fc1.*": "mlp.wide.*",
    "mlp.fc2.*": "mlp.narrow.*",
}
COUNTERS = ("*position_ids",)  # 0, 1, 2, ... kept as a weight by earlier versions


def openclip_text_rules(*, ours: str = "", projection: bool = False) -> list[Rule]:
    """The text side of open_clip.CLIP to :class:`ldm.models.clip.TextTransformer`."""
    return [
        rename("token_embedding.weight", f"{ours}tokens.weight"),
        rename("positional_embedding", f"{ours}positions"),
        *_openclip_blocks("transformer.resblocks", f"{ours}blocks"),
        rename("ln_final.*", f"{ours}norm.*"),
        *[transpose("text_projection", f"{ours}projection.weight")] * projection,
    ]


def openclip_rules() -> list[Rule]:
    """open_clip.CLIP with a vision transformer to :class:`ldm.models.clip.CLIP`."""
    return [
        *openclip_text_rules(ours="text.", projection=True),
        rename("visual.conv1.weight", "image.patches.weight"),
        rename("visual.class_embedding", "image.class_token"),
        rename("visual.positional_embedding", "image.positions"),
        rename("visual.ln_pre.*", "image.norm_in.*"),
        *_openclip_blocks("visual.transformer.resblocks", "image.blocks"),
        rename("visual.ln_post.*", "image.norm_out.*"),
        transpose("visual.proj", "image.projection.weight"),
        rename("logit_scale", "logit_scale"),
    ]


def text_rules(*, prefix: str = "text_model.", ours: str = "", projection: bool = False) -> list[Rule]:
    """CLIPTextModel to :class:`ldm.models.clip.TextTransformer`.

    Args:
        prefix: of their names; transformers 5 writes none, all others and diffusers folders `text_model.`.
        ours: prefix of our names.
        projection: whether there is a text_projection, as in CLIPModel.
    """
    rules = [
        rename(f"{prefix}embeddings.token_embedding.weight", f"{ours}tokens.weight"),
        rename(f"{prefix}embeddings.position_embedding.weight", f"{ours}positions"),
        *_layers(f"{prefix}encoder.layers", f"{ours}blocks"),
        rename(f"{prefix}final_layer_norm.*", f"{ours}norm.*"),
    ]
    return rules + [rename("text_projection.weight", f"{ours}projection.weight")] * projection


def vision_rules(*, ours: str = "") -> list[Rule]:
    """The vision_model of CLIPModel to :class:`ldm.models.clip.VisionTransformer`."""
    theirs = "vision_model"
    return [
        rename(f"{theirs}.embeddings.class_embedding", f"{ours}class_token"),
        rename(f"{theirs}.embeddings.patch_embedding.weight", f"{ours}patches.weight"),
        rename(f"{theirs}.embeddings.position_embedding.weight", f"{ours}positions"),
        rename(f"{theirs}.pre_layrnorm.*", f"{ours}norm_in.*"),  # their spelling
        *_layers(f"{theirs}.encoder.layers", f"{ours}blocks"),
        rename(f"{theirs}.post_layernorm.*", f"{ours}norm_out.*"),
        rename("visual_projection.weight", f"{ours}projection.weight"),
    ]


def text_prefix(names: Iterable[str]) -> str:
    """Which of the two prefixes a text encoder's file has."""
    return "text_model." if any(name.startswith("text_model.") for name in names) else ""


def _openclip_blocks(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}.{{}}.{a}", f"{ours}.{{}}.{b}") for a, b in OPENCLIP_LAYER.items()]


def _layers(theirs: str, ours: str) -> list[Rule]:
    return [
        *(rename(f"{theirs}.{{}}.{a}", f"{ours}.{{}}.{b}") for a, b in LAYER.items()),
        merge([f"{theirs}.{{}}.self_attn.{x}_proj.*" for x in "qkv"], f"{ours}.{{}}.attention.qkv.*"),
    ]
