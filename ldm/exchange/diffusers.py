"""Names of diffusers' AutoencoderKL and UNet2DConditionModel against ours."""

from collections.abc import Callable, Iterable

from ldm.exchange.keymap import Rule, linear, merge, rename

RESNET = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "time_emb_proj": "time",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "conv_shortcut": "shortcut",
}
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
ATTENTION = (["to_q", "to_k", "to_v"], "to_out.0")
EARLY_ATTENTION = (["query", "key", "value"], "proj_attn")


def _resnet(theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}.{a}.*", f"{ours}.{b}.*") for a, b in RESNET.items()]


POOL = {"norm1": "norm_in", "pool.q_proj": "q", "proj": "out", "norm2": "norm_out"}


def _pool(theirs: str, ours: str) -> list[Rule]:
    return [
        *(rename(f"{theirs}.{a}.*", f"{ours}.{b}.*") for a, b in POOL.items()),
        rename(f"{theirs}.pool.positional_embedding", f"{ours}.place"),
        merge([f"{theirs}.pool.{x}_proj.*" for x in "kv"], f"{ours}.kv.*"),
    ]


def transformer_rules(theirs: str, ours: str, projection: Callable[[str, str], Rule]) -> list[Rule]:
    """A transformer over pixels; the names inside it are the same in CompVis' code and in diffusers.

    ``projection`` is the rule for its two outer layers: `linear` where theirs are convolutions, or `rename`.
    """
    block, our_block = f"{theirs}.transformer_blocks.{{}}", f"{ours}.blocks.{{}}"
    kv = [f"{block}.attn2.to_{x}.weight" for x in "kv"]
    return [
        rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
        *(projection(f"{theirs}.{name}.weight", f"{ours}.{name}.weight") for name in ("proj_in", "proj_out")),
        *(rename(f"{theirs}.{name}.bias", f"{ours}.{name}.bias") for name in ("proj_in", "proj_out")),
        *(rename(f"{block}.{a}.*", f"{our_block}.{b}.*") for a, b in BLOCK.items()),
        merge([f"{block}.attn1.to_{x}.weight" for x in "qkv"], f"{our_block}.self_attention.qkv.weight"),
        merge(kv, f"{our_block}.cross_attention.kv.weight"),
    ]


def unet_rules(*, linear_projection: bool = False) -> list[Rule]:
    """UNet2DConditionModel to :class:`ldm.models.unet.UNet`.

    ``linear_projection`` is their ``use_linear_projection``: false in Stable Diffusion 1.x, true in 2.x.
    """
    projection = rename if linear_projection else linear
    return [
        rename("conv_in.*", "conv_in.*"),
        rename("time_embedding.linear_1.*", "time.hidden.*"),
        rename("time_embedding.linear_2.*", "time.out.*"),
        *_pool("add_embedding", "pool"),
        *_resnet("down_blocks.{}.resnets.{}", "down.{}.units.{}.resnet"),
        *transformer_rules("down_blocks.{}.attentions.{}", "down.{}.units.{}.transformer", projection),
        rename("down_blocks.{}.downsamplers.0.conv.*", "down.{}.resample.conv.*"),
        *_resnet("mid_block.resnets.{}", "middle.{}.resnet"),
        *transformer_rules("mid_block.attentions.{}", "middle.{}.transformer", projection),
        *_resnet("up_blocks.{}.resnets.{}", "up.{}.units.{}.resnet"),
        *transformer_rules("up_blocks.{}.attentions.{}", "up.{}.units.{}.transformer", projection),
        rename("up_blocks.{}.upsamplers.0.conv.*", "up.{}.resample.conv.*"),
        rename("conv_norm_out.*", "norm_out.*"),
        rename("conv_out.*", "conv_out.*"),
    ]


def vae_rules(*, early: bool = False) -> list[Rule]:
    """AutoencoderKL to :class:`ldm.models.vae.AutoencoderKL`.

    ``early`` are the names of the attention's layers in files from before 2023, Stable Diffusion 1.x's own.
    """
    names = EARLY_ATTENTION if early else ATTENTION
    return [
        *_vae_side("encoder", "down_blocks", "downsamplers", names),
        rename("quant_conv.*", "to_moments.*"),
        rename("post_quant_conv.*", "from_latents.*"),
        *_vae_side("decoder", "up_blocks", "upsamplers", names),
    ]


def has_early_names(names: Iterable[str]) -> bool:
    """Whether an autoencoder's file has the early names of the attention's layers."""
    return any(".attentions.0.query." in name for name in names)


def _vae_side(side: str, blocks: str, samplers: str, names: tuple[list[str], str]) -> list[Rule]:
    attention, ours = f"{side}.mid_block.attentions.0", f"{side}.middle.attention"
    projections, out = names
    return [
        rename(f"{side}.conv_in.*", f"{side}.conv_in.*"),
        *_resnet(f"{side}.{blocks}.{{}}.resnets.{{}}", f"{side}.levels.{{}}.blocks.{{}}"),
        rename(f"{side}.{blocks}.{{}}.{samplers}.0.conv.*", f"{side}.levels.{{}}.resample.conv.*"),
        *_resnet(f"{side}.mid_block.resnets.0", f"{side}.middle.block_in"),
        *_resnet(f"{side}.mid_block.resnets.1", f"{side}.middle.block_out"),
        rename(f"{attention}.group_norm.*", f"{ours}.norm.*"),
        merge([f"{attention}.{name}.*" for name in projections], f"{ours}.attention.qkv.*"),
        rename(f"{attention}.{out}.*", f"{ours}.attention.out.*"),
        rename(f"{side}.conv_norm_out.*", f"{side}.norm_out.*"),
        rename(f"{side}.conv_out.*", f"{side}.conv_out.*"),
    ]
