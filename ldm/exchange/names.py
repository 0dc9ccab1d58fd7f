"""Names of tensors in diffusers, CompVis' code, transformers and open_clip against ours, as rules.

CompVis' U-Net numbers the blocks of all levels of a side in sequence, and its decoder counts levels from fine
to coarse, so that its rules depend on the numbers of levels and blocks. OpenAI's CLIP has open_clip's
names. `linear_projection` is diffusers' `use_linear_projection`: the outer layers of a transformer are
linear, as in Stable Diffusion 2.x, and not 1x1 convolutions, as in 1.x.
"""

from collections.abc import Iterable, Sequence
from functools import partial

from ldm.exchange.keymap import Rule, linear, merge, rename, renames, transpose

NORMS = {"norm1": "norm_in", "conv1": "conv_in", "norm2": "norm_out", "conv2": "conv_out"}
RESNET = NORMS | {"time_emb_proj": "time", "conv_shortcut": "shortcut"}
BLOCK = {
    "norm1": "norm_self",
    "attn1.to_out.0": "self_attention.out",
    "norm2": "norm_cross",
    "attn2.to_q": "cross_attention.q",
    "attn2.to_out.0": "cross_attention.out",
    "norm3": "norm_ff",
    "ff.net.0.proj": "ff.hidden",
    "ff.net.2": "ff.out",
}
POOL = {"norm1": "norm_in", "pool.q_proj": "q", "proj": "out", "norm2": "norm_out"}
OUTER = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
COMPVIS_RESNET = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "time",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "shortcut",
}
COMPVIS_VAE_RESNET = NORMS | {"nin_shortcut": "shortcut"}
KL_OUTER = ("to_moments", "from_latents")  # our names of quant_conv and post_quant_conv
CLIP_LAYER = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attention.out",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.wide",
    "mlp.fc2": "mlp.narrow",
}
OPENCLIP_LAYER = {"ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.wide", "mlp.c_proj": "mlp.narrow"}


def unet_rules(*, linear_projection: bool = False) -> list[Rule]:
    """Names of UNet2DConditionModel against those of :class:`ldm.models.unet.UNet`."""
    rules = [
        *renames(OUTER),
        *renames({"time_embedding.linear_1": "time.hidden", "time_embedding.linear_2": "time.out"}),
        *renames(POOL, "add_embedding.", "pool."),
        rename("add_embedding.pool.positional_embedding", "pool.place"),
        merge([f"add_embedding.pool.{x}_proj.*" for x in "kv"], "pool.kv.*"),
        rename("down_blocks.{}.downsamplers.0.conv.*", "down.{}.resample.conv.*"),
        rename("up_blocks.{}.upsamplers.0.conv.*", "up.{}.resample.conv.*"),
    ]
    units = {"down_blocks.{}": "down.{}.units", "mid_block": "middle", "up_blocks.{}": "up.{}.units"}
    for theirs, ours in units.items():
        rules += renames(RESNET, f"{theirs}.resnets.{{}}.", f"{ours}.{{}}.resnet.")
        rules += transformer_rules(
            f"{theirs}.attentions.{{}}", f"{ours}.{{}}.transformer", linear_projection=linear_projection
        )
    return rules


def transformer_rules(theirs: str, ours: str, *, linear_projection: bool) -> list[Rule]:
    """A transformer over pixels, which has the same names in CompVis' code and in diffusers."""
    projection = rename if linear_projection else linear
    block, our_block = f"{theirs}.transformer_blocks.{{}}", f"{ours}.blocks.{{}}"
    outer = ("proj_in", "proj_out")
    return [
        rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
        *(projection(f"{theirs}.{name}.weight", f"{ours}.{name}.weight") for name in outer),
        *(rename(f"{theirs}.{name}.bias", f"{ours}.{name}.bias") for name in outer),
        *renames(BLOCK, f"{block}.", f"{our_block}."),
        merge([f"{block}.attn1.to_{x}.weight" for x in "qkv"], f"{our_block}.self_attention.qkv.weight"),
        merge([f"{block}.attn2.to_{x}.weight" for x in "kv"], f"{our_block}.cross_attention.kv.weight"),
    ]


def vae_rules(
    names: Iterable[str] = (), *, outer: Sequence[str] = KL_OUTER, attention: Sequence[bool] = ()
) -> list[Rule]:
    """Names of AutoencoderKL and VQModel against those of our convolutional autoencoders.

    Args:
        names: of a file, which may have the attention's names of before 2023.
        outer: our names of quant_conv and post_quant_conv.
        attention: whether each level has attention, finest first; empty: none has.
    """
    early = any(".attentions.0.query." in name for name in names)
    *qkv, out = ("query", "key", "value", "proj_attn") if early else ("to_q", "to_k", "to_v", "to_out.0")

    def _attention(theirs: str, ours: str) -> list[Rule]:
        return [
            rename(f"{theirs}.group_norm.*", f"{ours}.norm.*"),
            merge([f"{theirs}.{name}.*" for name in qkv], f"{ours}.attention.qkv.*"),
            rename(f"{theirs}.{out}.*", f"{ours}.attention.out.*"),
        ]

    rules = renames(dict(zip(("quant_conv", "post_quant_conv"), outer, strict=True)))
    sides = {"encoder": ("down", attention), "decoder": ("up", attention[::-1])}
    for side, (way, attending) in sides.items():
        rules += [
            *renames(OUTER, f"{side}.", f"{side}."),
            rename(f"{side}.{way}_blocks.{{}}.{way}samplers.0.conv.*", f"{side}.levels.{{}}.resample.conv.*"),
            *renames(RESNET, f"{side}.mid_block.resnets.0.", f"{side}.middle.block_in."),
            *renames(RESNET, f"{side}.mid_block.resnets.1.", f"{side}.middle.block_out."),
            *_attention(f"{side}.mid_block.attentions.0", f"{side}.middle.attention"),
        ]
        for number, attends in _numbered(attending):
            theirs, ours = f"{side}.{way}_blocks.{number}", f"{side}.levels.{number}.blocks.{{}}."
            rules += renames(RESNET, f"{theirs}.resnets.{{}}.", ours + "0." * attends)
            rules += _attention(f"{theirs}.attentions.{{}}", f"{ours}1") if attends else []
    return rules


def _numbered(attending: Sequence[bool]) -> list[tuple[str, bool]]:
    """The number of each level and whether it has attention; a wildcard where none has."""
    return [(str(number), each) for number, each in enumerate(attending)] or [("{}", False)]


def compvis_unet_rules(*, levels: Sequence[bool], blocks: int, linear_projection: bool = False) -> list[Rule]:
    """Names of CompVis' UNetModel against those of :class:`ldm.models.unet.UNet`.

    Args:
        levels: whether each resolution has transformers, finest first.
        blocks: residual blocks of a level on the way down; the way up has one more.
    """
    transformer = partial(transformer_rules, linear_projection=linear_projection)

    def _unit(theirs: str, ours: str, attention: bool) -> list[Rule]:
        rules = renames(COMPVIS_RESNET, f"{theirs}.0.", f"{ours}.resnet.")
        return rules + transformer(f"{theirs}.1", f"{ours}.transformer") * attention

    rules = [
        *renames({"time_embed.0": "time.hidden", "time_embed.2": "time.out", "input_blocks.0.0": "conv_in"}),
        *renames({"out.0": "norm_out", "out.2": "conv_out"}),
        *renames(COMPVIS_RESNET, "middle_block.0.", "middle.0.resnet."),
        *transformer("middle_block.1", "middle.0.transformer"),
        *renames(COMPVIS_RESNET, "middle_block.2.", "middle.1.resnet."),
    ]
    for level, attention in enumerate(levels):
        first = 1 + level * (blocks + 1)  # after the entry, a level is its blocks and a downsampler
        for block in range(blocks):
            rules += _unit(f"input_blocks.{first + block}", f"down.{level}.units.{block}", attention)
        rules.append(rename(f"input_blocks.{first + blocks}.0.op.*", f"down.{level}.resample.conv.*"))
    for level, attention in enumerate(reversed(levels)):
        first = level * (blocks + 1)  # the upsampler is a further part of a level's last block
        for block in range(blocks + 1):
            rules += _unit(f"output_blocks.{first + block}", f"up.{level}.units.{block}", attention)
        resample = f"output_blocks.{first + blocks}.{1 + attention}.conv.*"
        rules.append(rename(resample, f"up.{level}.resample.conv.*"))
    return rules


def compvis_vae_rules(
    *, num_levels: int, outer: Sequence[str] = KL_OUTER, attention: Sequence[bool] = ()
) -> list[Rule]:
    """Names of CompVis' AutoencoderKL and VQModel against ours; arguments as of `vae_rules`."""
    rules = renames(dict(zip(("quant_conv", "post_quant_conv"), outer, strict=True)))
    for level, attends in enumerate(attention or [False] * num_levels):
        for theirs, ours, resample in (
            (f"encoder.down.{level}", f"encoder.levels.{level}", "downsample"),
            (f"decoder.up.{level}", f"decoder.levels.{num_levels - 1 - level}", "upsample"),
        ):
            inner = f"{ours}.blocks.{{}}."
            rules += renames(COMPVIS_VAE_RESNET, f"{theirs}.block.{{}}.", inner + "0." * attends)
            rules += _compvis_attention(f"{theirs}.attn.{{}}", f"{inner}1") if attends else []
            rules.append(rename(f"{theirs}.{resample}.conv.*", f"{ours}.resample.conv.*"))
    for side in ("encoder", "decoder"):
        rules += [
            *renames({name: name for name in ("conv_in", "norm_out", "conv_out")}, f"{side}.", f"{side}."),
            *renames(COMPVIS_VAE_RESNET, f"{side}.mid.block_1.", f"{side}.middle.block_in."),
            *renames(COMPVIS_VAE_RESNET, f"{side}.mid.block_2.", f"{side}.middle.block_out."),
            *_compvis_attention(f"{side}.mid.attn_1", f"{side}.middle.attention"),
        ]
    return rules


def _compvis_attention(theirs: str, ours: str) -> list[Rule]:
    return [
        rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
        merge([f"{theirs}.{x}.weight" for x in "qkv"], f"{ours}.attention.qkv.weight", convolutions=True),
        merge([f"{theirs}.{x}.bias" for x in "qkv"], f"{ours}.attention.qkv.bias"),
        linear(f"{theirs}.proj_out.weight", f"{ours}.attention.out.weight"),
        rename(f"{theirs}.proj_out.bias", f"{ours}.attention.out.bias"),
    ]


def text_rules(*, prefix: str = "text_model.", ours: str = "", projection: bool = False) -> list[Rule]:
    """Names of CLIPTextModel against those of :class:`ldm.models.clip.TextTransformer`.

    Args:
        prefix: of their names, which only transformers 5 omits.
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


def clip_rules() -> list[Rule]:
    """Names of transformers' CLIPModel against those of :class:`ldm.models.clip.CLIP`."""
    both = [*text_rules(ours="text.", projection=True), *vision_rules(ours="image.")]
    return [*both, rename("logit_scale", "logit_scale")]


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


def _layers(theirs: str, ours: str) -> list[Rule]:
    return [
        *renames(CLIP_LAYER, f"{theirs}.{{}}.", f"{ours}.{{}}."),
        merge([f"{theirs}.{{}}.self_attn.{x}_proj.*" for x in "qkv"], f"{ours}.{{}}.attention.qkv.*"),
    ]


def fused(theirs: str, ours: str) -> list[Rule]:
    """torch.nn.MultiheadAttention against our attention, whose rows are q, k, v, too."""
    return [rename(f"{theirs}in_proj_*", f"{ours}qkv.*"), rename(f"{theirs}out_proj.*", f"{ours}out.*")]


def _openclip_layers(theirs: str, ours: str) -> list[Rule]:
    layers = renames(OPENCLIP_LAYER, f"{theirs}.{{}}.", f"{ours}.{{}}.")
    return [*layers, *fused(f"{theirs}.{{}}.attn.", f"{ours}.{{}}.attention.")]
