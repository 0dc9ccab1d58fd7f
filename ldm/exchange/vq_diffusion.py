"""VQ-Diffusion's network in diffusers' folders and in the released files, against ours."""

from ldm.exchange.keymap import Rule, merge, rename, renames

OURS = "ldm.models.code_denoiser.CodeDenoiser"
PLACES = {"emb": "codes", "height_emb": "rows", "width_emb": "columns"}


def diffusers_rules() -> list[Rule]:
    """Names of Transformer2DModel over codes against ours; the empty text is a file of its own."""
    block = {
        "norm1.emb": "norm_self.steps",
        "norm1.linear": "norm_self.modulation",
        "attn1.to_out.0": "self_attention.out",
        "norm2.emb": "norm_cross.steps",
        "norm2.linear": "norm_cross.modulation",
        "attn2.to_q": "cross_attention.q",
        "attn2.to_out.0": "cross_attention.out",
        "norm3": "norm_mlp",
        "ff.net.0.proj": "mlp.wide",
        "ff.net.2": "mlp.narrow",
    }
    theirs = "transformer_blocks.{}."
    return [
        *renames(PLACES, "latent_image_embedding."),
        *renames({"norm_out": "norm_out", "out": "logits"}),
        rename("embeddings", "empty"),
        *_block(theirs, block, own=[f"attn1.to_{x}" for x in "qkv"], text=[f"attn2.to_{x}" for x in "kv"]),
    ]


def released_rules() -> list[Rule]:
    """Names of the released code against ours, without the prefix `transformer.`; see `RELEASED_BESIDE`."""
    block = {
        "ln1.emb": "norm_self.steps",
        "ln1.linear": "norm_self.modulation",
        "attn1.proj": "self_attention.out",
        "ln1_1.emb": "norm_cross.steps",
        "ln1_1.linear": "norm_cross.modulation",
        "attn2.query": "cross_attention.q",
        "attn2.proj": "cross_attention.out",
        "ln2": "norm_mlp",
        "mlp.0": "mlp.wide",
        "mlp.2": "mlp.narrow",
    }
    own = [f"attn1.{name}" for name in ("query", "key", "value")]
    return [
        *renames(PLACES, "transformer.content_emb."),
        *renames({"to_logits.0": "norm_out", "to_logits.1": "logits"}, "transformer."),
        rename("empty_text_embed", "empty"),
        *_block("transformer.blocks.{}.", block, own=own, text=["attn2.key", "attn2.value"]),
    ]


# beside the network: tables of the schedule, the history of losses, and CLIP, which reads the text
RELEASED_BESIDE = ("log_*", "Lt_*", "condition_emb.*")


def _block(theirs: str, names: dict[str, str], *, own: list[str], text: list[str]) -> list[Rule]:
    """A block: layers under other names, and separate projections of attention as one."""
    ours = "blocks.{}."
    return [
        *renames(names, theirs, ours),
        merge([f"{theirs}{name}.*" for name in own], f"{ours}self_attention.qkv.*"),
        merge([f"{theirs}{name}.*" for name in text], f"{ours}cross_attention.kv.*"),
    ]
