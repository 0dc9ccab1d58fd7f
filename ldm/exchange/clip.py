"""Names of open_clip's CLIP (and OpenAI's own) against ours."""

from ldm.exchange.keymap import Rule, rename, transpose

BLOCK = {
    "ln_1.*": "norm1.*",
    "attn.in_proj_*": "attention.qkv.*",  # rows q, k, v in both
    "attn.out_proj.*": "attention.out.*",
    "ln_2.*": "norm2.*",
    "mlp.c_fc.*": "mlp.wide.*",
    "mlp.c_proj.*": "mlp.narrow.*",
}


def _blocks(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}.{{}}.{a}", f"{ours}.{{}}.{b}") for a, b in BLOCK.items()]


def clip_rules() -> list[Rule]:
    """open_clip.CLIP with a vision transformer to :class:`ldm.models.clip.CLIP`."""
    return [
        rename("token_embedding.weight", "text.tokens.weight"),
        rename("positional_embedding", "text.positions"),
        *_blocks("transformer.resblocks", "text.blocks"),
        rename("ln_final.*", "text.norm.*"),
        transpose("text_projection", "text.projection.weight"),
        rename("visual.conv1.weight", "image.patches.weight"),
        rename("visual.class_embedding", "image.class_token"),
        rename("visual.positional_embedding", "image.positions"),
        rename("visual.ln_pre.*", "image.norm_in.*"),
        *_blocks("visual.transformer.resblocks", "image.blocks"),
        rename("visual.ln_post.*", "image.norm_out.*"),
        transpose("visual.proj", "image.projection.weight"),
        rename("logit_scale", "logit_scale"),
    ]
