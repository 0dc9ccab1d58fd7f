"""diffusers' UNet2DConditionModel and AutoencoderKL against our networks: configs and names of tensors.

What our networks don't have is refused by the field's name; what diffusers doesn't have, by the option's.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ldm import UserError
from ldm.exchange.dialects import arguments, refuse_options
from ldm.exchange.keymap import Rule, linear, merge, rename, renames
from ldm.exchange.kinds import refuse_channels
from ldm.io.fields import MAX_DEPTH, MAX_WIDTH, Fields

UNET = "ldm.models.unet.UNet"
AUTOENCODER = "ldm.models.vae.AutoencoderKL"
TRANSFORMER = "ldm.models.attention.TransformerSpec"

DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # whether a level has transformers
UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
POOLS = {"text": True, "none": False}  # kinds of what joins the time embedding

# the one value that our U-Net has for each field of theirs that it can't change
UNET_FIXED: dict[str, Any] = {
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_eps": 1e-05,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "resnet_time_scale_shift": "default",
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
}
UNET_READ = {
    *(
        "sample_size",
        "in_channels",
        "out_channels",
        "down_block_types",
        "up_block_types",
        "block_out_channels",
    ),
    *("layers_per_block", "norm_num_groups", "cross_attention_dim", "transformer_layers_per_block"),
    *("attention_head_dim", "use_linear_projection", "addition_embed_type"),
    "addition_embed_type_num_heads",  # of no meaning without an addition_embed_type
    "upcast_attention",  # softmax in float32, which ours has always
}
VAE_FIXED: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "act_fn": "silu",
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
VAE_READ = {
    *("down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "latent_channels"),
    *("norm_num_groups", "sample_size", "scaling_factor", "shift_factor", "mid_block_add_attention"),
    "force_upcast",  # float32 for the decoder, which ours has always
}

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
POOL = {"norm1": "norm_in", "pool.q_proj": "q", "proj": "out", "norm2": "norm_out"}
ATTENTION = (["to_q", "to_k", "to_v"], "to_out.0")
EARLY_ATTENTION = (["query", "key", "value"], "proj_attn")


def unet_spec(fields: Fields) -> dict[str, Any]:
    """The tree of :class:`ldm.models.unet.UNet` for a UNet2DConditionModel's config.

    Raises:
        UserError: a field that our network has no option for, or a number out of range.
    """
    fields.only(UNET_FIXED)
    fields.known({*UNET_FIXED, *UNET_READ})
    levels = _levels(fields, down=DOWN, up=UP)
    count = len(levels)
    widths = fields.wholes("block_out_channels", count=count, high=MAX_WIDTH)
    channels = fields.whole("in_channels", 4, high=MAX_WIDTH)
    refuse_channels(fields.name, channels, latents=fields.whole("out_channels", 4, high=MAX_WIDTH))
    heads = fields.wholes("attention_head_dim", 8, count=count, high=MAX_WIDTH)  # theirs is misnamed
    transformer = {
        "_target_": TRANSFORMER,
        "context_dim": _equal(fields, "cross_attention_dim", count, default=1280, high=MAX_WIDTH),
        "levels": levels,
        **_heads(fields, widths, heads),
        "depth": _equal(fields, "transformer_layers_per_block", count, default=1),
    }
    return {
        "_target_": UNET,
        "latent_channels": channels,
        "channels": widths[0],
        "multipliers": [_ratio(width, widths[0]) for width in widths],
        "blocks_per_level": _equal(fields, "layers_per_block", count, default=2),
        "norm_groups": fields.whole("norm_num_groups", 32, high=MAX_WIDTH),
        "transformer": transformer | {"pool_context": _pools(fields, transformer)},
    }


def unet_config(
    spec: Mapping[str, Any], *, latent_size: int, linear_projection: bool = False
) -> dict[str, Any]:
    """UNet2DConditionModel's config for a U-Net of ours.

    Args:
        latent_size: side of the latents of a picture of the usual size.
        linear_projection: whether the weights are to be written as Stable Diffusion 2.x has them.

    Raises:
        UserError: an option that diffusers has no field for.
    """
    net = arguments(spec, target=UNET, what="the backbone")
    attention = arguments(net["transformer"], target=TRANSFORMER, what="the backbone's transformer")
    options = net | {f"transformer.{key}": value for key, value in attention.items()}
    options["multipliers[0]"] = net["multipliers"][0]
    refuse_options("the backbone", options, {"patch": 1, "multipliers[0]": 1, "transformer.ff_mult": 4})
    widths = [int(net["channels"] * multiplier) for multiplier in net["multipliers"]]
    heads = [_number_of_heads(attention, width) for width in widths]
    pool_heads = _number_of_heads(attention, attention["context_dim"])
    pool = {"addition_embed_type": "text", "addition_embed_type_num_heads": pool_heads}
    return {
        "_class_name": "UNet2DConditionModel",
        **UNET_FIXED,
        **(pool if attention["pool_context"] else {}),
        "sample_size": latent_size,
        "in_channels": net["latent_channels"],
        "out_channels": net["latent_channels"],
        "down_block_types": [_name(DOWN, level) for level in attention["levels"]],
        "up_block_types": [_name(UP, level) for level in reversed(attention["levels"])],
        "block_out_channels": widths,
        "layers_per_block": net["blocks_per_level"],
        "norm_num_groups": net["norm_groups"],
        "cross_attention_dim": attention["context_dim"],
        "transformer_layers_per_block": attention["depth"],
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "use_linear_projection": linear_projection,
    }


def unet_rules(*, linear_projection: bool = False) -> list[Rule]:
    """Names of UNet2DConditionModel against those of :class:`ldm.models.unet.UNet`.

    Args:
        linear_projection: their `use_linear_projection`: false in Stable Diffusion 1.x, true in 2.x.
    """
    projection = rename if linear_projection else linear
    return [
        *renames({"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}),
        *renames({"time_embedding.linear_1": "time.hidden", "time_embedding.linear_2": "time.out"}),
        *renames(POOL, "add_embedding.", "pool."),
        rename("add_embedding.pool.positional_embedding", "pool.place"),
        merge([f"add_embedding.pool.{x}_proj.*" for x in "kv"], "pool.kv.*"),
        *renames(RESNET, "down_blocks.{}.resnets.{}.", "down.{}.units.{}.resnet."),
        *transformer_rules("down_blocks.{}.attentions.{}", "down.{}.units.{}.transformer", projection),
        rename("down_blocks.{}.downsamplers.0.conv.*", "down.{}.resample.conv.*"),
        *renames(RESNET, "mid_block.resnets.{}.", "middle.{}.resnet."),
        *transformer_rules("mid_block.attentions.{}", "middle.{}.transformer", projection),
        *renames(RESNET, "up_blocks.{}.resnets.{}.", "up.{}.units.{}.resnet."),
        *transformer_rules("up_blocks.{}.attentions.{}", "up.{}.units.{}.transformer", projection),
        rename("up_blocks.{}.upsamplers.0.conv.*", "up.{}.resample.conv.*"),
    ]


def transformer_rules(theirs: str, ours: str, projection: Callable[[str, str], Rule]) -> list[Rule]:
    """A transformer over pixels; the names inside it are the same in CompVis' code and in diffusers.

    Args:
        projection: the rule of its two outer layers: `linear` where theirs are convolutions, or `rename`.
    """
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


def vae_spec(fields: Fields) -> dict[str, Any]:
    """The tree of :class:`ldm.models.vae.AutoencoderKL` for a config of diffusers' class of that name.

    Raises:
        UserError: a field that our network has no option for, or a number out of range.
    """
    fields.only(VAE_FIXED)
    fields.known({*VAE_FIXED, *VAE_READ})
    levels = _levels(fields, down={"DownEncoderBlock2D": False}, up={"UpDecoderBlock2D": False})
    widths = fields.wholes("block_out_channels", 64, count=len(levels), high=MAX_WIDTH)
    return {
        "_target_": AUTOENCODER,
        "channels": widths[0],
        "multipliers": [_ratio(width, widths[0]) for width in widths],
        "blocks_per_level": fields.whole("layers_per_block", 1, high=MAX_DEPTH),
        "latent_channels": fields.whole("latent_channels", 4, high=MAX_WIDTH),
        "norm_groups": fields.whole("norm_num_groups", 32, high=MAX_WIDTH),
        "mid_attention": fields.flag("mid_block_add_attention", True),
    }


def vae_latents(fields: Fields) -> dict[str, list[float]]:
    """Latent shift and scale of each channel, as a bundle keeps them."""
    channels = fields.whole("latent_channels", 4, high=MAX_WIDTH)
    scale = fields.number("scaling_factor", 0.18215, low=1e-6, high=1e6)
    shift = fields.number("shift_factor", 0.0, low=-1e6, high=1e6)
    return {"shift": [float(shift)] * channels, "scale": [float(scale)] * channels}


def vae_config(spec: Mapping[str, Any], *, scale: float, size: int) -> dict[str, Any]:
    """AutoencoderKL's config for an autoencoder of ours whose latents have one scale and no shift.

    Args:
        scale: of the latents.
        size: side of a picture of the usual size, in pixels.

    Raises:
        UserError: an option that diffusers has no field for.
    """
    net = arguments(spec, target=AUTOENCODER, what="the autoencoder")
    refuse_options("the autoencoder", net, {"patch": 1})
    count = len(net["multipliers"])
    return {
        "_class_name": "AutoencoderKL",
        **VAE_FIXED,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "block_out_channels": [int(net["channels"] * multiplier) for multiplier in net["multipliers"]],
        "layers_per_block": net["blocks_per_level"],
        "latent_channels": net["latent_channels"],
        "norm_num_groups": net["norm_groups"],
        "sample_size": size,
        "scaling_factor": scale,
        "force_upcast": True,
        "mid_block_add_attention": net["mid_attention"],
    }


def vae_rules(*, early: bool = False) -> list[Rule]:
    """Names of AutoencoderKL against those of :class:`ldm.models.vae.AutoencoderKL`.

    Args:
        early: whether the attention's layers are named as before 2023, in Stable Diffusion 1.x's own files.
    """
    projections, out = EARLY_ATTENTION if early else ATTENTION
    rules = renames({"quant_conv": "to_moments", "post_quant_conv": "from_latents"})
    for side, blocks, samplers in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers")):
        theirs, attention = f"{side}.{blocks}_blocks.{{}}", f"{side}.mid_block.attentions.0"
        middle = f"{side}.middle"
        names = {"conv_in": "conv_in", "conv_norm_out": "norm_out", "conv_out": "conv_out"}
        rules += [
            *renames(names, f"{side}.", f"{side}."),
            *renames(RESNET, f"{theirs}.resnets.{{}}.", f"{side}.levels.{{}}.blocks.{{}}."),
            rename(f"{theirs}.{samplers}.0.conv.*", f"{side}.levels.{{}}.resample.conv.*"),
            *renames(RESNET, f"{side}.mid_block.resnets.0.", f"{middle}.block_in."),
            *renames(RESNET, f"{side}.mid_block.resnets.1.", f"{middle}.block_out."),
            rename(f"{attention}.group_norm.*", f"{middle}.attention.norm.*"),
            merge([f"{attention}.{name}.*" for name in projections], f"{middle}.attention.attention.qkv.*"),
            rename(f"{attention}.{out}.*", f"{middle}.attention.attention.out.*"),
        ]
    return rules


def has_early_names(names: Iterable[str]) -> bool:
    """Whether an autoencoder's file has the early names of the attention's layers."""
    return any(".attentions.0.query." in name for name in names)


def _levels(fields: Fields, *, down: Mapping[str, bool], up: Mapping[str, bool]) -> list[bool]:
    """Which levels have transformers; the way up must mirror the way down."""
    falling = [_block(fields, name, down) for name in fields.names("down_block_types")]
    rising = [_block(fields, name, up) for name in fields.names("up_block_types")]
    if rising != falling[::-1]:
        raise UserError(f"{fields.name}: up_block_types do not mirror down_block_types, as ours do")
    return falling


def _block(fields: Fields, name: str, kinds: Mapping[str, bool]) -> bool:
    if name not in kinds:
        raise UserError(f"{fields.name}: blocks of type {name} are not covered, only {', '.join(kinds)}")
    return kinds[name]


def _equal(fields: Fields, key: str, count: int, *, default: int, high: int = MAX_DEPTH) -> int:
    """A number that theirs may give per level and ours has once."""
    values = fields.wholes(key, default, count=count, high=high)
    if len(set(values)) > 1:
        raise UserError(f"{fields.name}: {key}={values} differs between levels, ours is the same at all")
    return values[0]


def _heads(fields: Fields, widths: list[int], heads: list[int]) -> dict[str, int]:
    sizes = {width // number for width, number in zip(widths, heads, strict=True)}
    if len(set(heads)) == 1:
        return {"num_heads": heads[0]}
    if len(sizes) == 1:
        return {"head_dim": sizes.pop()}
    raise UserError(f"{fields.name}: attention_head_dim={heads} gives heads of unequal width and number")


def _number_of_heads(transformer: Mapping[str, Any], width: int) -> int:
    return transformer.get("num_heads") or width // transformer["head_dim"]


def _pools(fields: Fields, transformer: Mapping[str, Any]) -> bool:
    """Whether a pool of the context joins the time embedding; its heads must be as ours would be."""
    pools = fields.choice("addition_embed_type", POOLS, "none")
    theirs = fields.whole("addition_embed_type_num_heads", 64, high=MAX_WIDTH)
    ours = _number_of_heads(transformer, transformer["context_dim"])
    if pools and theirs != ours:
        raise UserError(f"{fields.name}: addition_embed_type_num_heads={theirs}, ours has {ours} there")
    return pools


def _ratio(width: int, channels: int) -> int | float:
    return width // channels if width % channels == 0 else width / channels


def _name(kinds: Mapping[str, bool], level: bool) -> str:
    return next(name for name, kind in kinds.items() if kind == level)
