"""Configs of diffusers' pipeline against our `_target_` trees, read and written.

A field that our networks lack is refused by its name, and so is an option that diffusers lacks.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from ldm import UserError
from ldm.exchange import arguments, whole_numbers
from ldm.exchange.clip import TEXT, hf_text_config, hf_text_spec
from ldm.exchange.schedulers import GUIDANCE, process_spec, sampling_spec, scheduler_config
from ldm.io.fields import MAX_WIDTH, Fields

Config = dict[str, Any]

UNET = "ldm.models.unet.UNet"
AUTOENCODER = "ldm.models.vae.AutoencoderKL"
TRANSFORMER = "ldm.models.attention.TransformerSpec"
CONFIGS = ("unet", "vae", "text_encoder", "scheduler")

DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}  # whether a level has transformers
DOWN_NAMES = {level: name for name, level in DOWN.items()}
UP_NAMES = {True: "CrossAttnUpBlock2D", False: "UpBlock2D"}
VAE_DOWN, VAE_UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
POOLS = {"text": True, "none": False}  # what is added to the time embedding -> `pool_context`
POOL_FIELDS = {"addition_embed_type", "addition_embed_type_num_heads"}

UNET_FIXED: Config = {  # fields of theirs for which our U-Net has one value
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
# options of ours -> fields of theirs, with their defaults
UNET_NUMBERS = {"blocks_per_level": ("layers_per_block", 2), "norm_groups": ("norm_num_groups", 32)}
TRANSFORMER_NUMBERS = {
    "context_dim": ("cross_attention_dim", 1280),
    "depth": ("transformer_layers_per_block", 1),
}
VAE_NUMBERS = {
    "blocks_per_level": ("layers_per_block", 1),
    "latent_channels": ("latent_channels", 4),
    "norm_groups": ("norm_num_groups", 32),
}
QUANT = {"use_quant_conv": True, "use_post_quant_conv": True}
VAE_FIXED: Config = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", **QUANT}
# by the channels that a U-Net reads
INPAINTING = "an inpainting model: its U-Net reads a mask and a masked picture beside the latents"
INSTRUCT = "an InstructPix2Pix model: its U-Net reads a second picture beside the latents"
CHANNELS = {9: INPAINTING, 8: INSTRUCT, 7: "an upscaler: its U-Net reads a small picture beside the latents"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A pipeline without weights and tokenizer: `_target_` trees and numbers."""

    backbone: Config
    autoencoder: Config
    text_encoder: Config
    process: Config
    sampler: Config
    latents: Mapping[str, list[float]]  # `shift` and `scale` of each latent channel
    size: int  # side of the pictures in pixels
    linear_projection: bool = False  # whether the projections of diffusers' U-Net are linear layers

    def __post_init__(self) -> None:
        backbone = arguments(self.backbone, target=UNET, what="the backbone")
        text = arguments(self.text_encoder, target=TEXT, what="the text encoder")
        width, context = text["width"], backbone["transformer"]["context_dim"]
        if width != context:
            raise UserError(f"the U-Net's cross_attention_dim is {context}, the text encoder's width {width}")
        channels, latents = backbone["latent_channels"], self.autoencoder["latent_channels"]
        if channels != latents:
            raise UserError(f"the U-Net's in_channels is {channels}, but the autoencoder has {latents}")

    def settings(self) -> Config:
        """The entries of a bundle's config without its parts."""
        names = ("process", "sampler", "latents", "size", "linear_projection")
        return {**{name: asdict(self)[name] for name in names}, "guidance": dict(GUIDANCE)}


def from_configs(configs: Mapping[str, Fields]) -> Architecture:
    """The pipeline of diffusers' configs, which are named as in CONFIGS."""
    unet, vae, text, scheduler = (configs[name] for name in CONFIGS)
    backbone, autoencoder = unet_spec(unet), vae_spec(vae)
    return Architecture(
        backbone=backbone,
        autoencoder=autoencoder,
        text_encoder=hf_text_spec(text),
        process=process_spec(scheduler),
        sampler=sampling_spec(scheduler),
        latents=vae_latents(vae),
        size=unet.whole("sample_size", high=4096) * _factor(autoencoder),
        linear_projection=unet.flag("use_linear_projection"),
    )


def to_configs(pipeline: Architecture, *, pad_id: int) -> dict[str, Config]:
    """diffusers' configs of a pipeline whose latents have one scale and no shift.

    One message names every option that diffusers lacks.
    """
    latent_size, linear = pipeline.size // _factor(pipeline.autoencoder), pipeline.linear_projection
    scale = pipeline.latents["scale"][0]
    writers: tuple[Callable[[], Config], ...] = (
        partial(unet_config, pipeline.backbone, latent_size=latent_size, linear_projection=linear),
        partial(vae_config, pipeline.autoencoder, scale=scale, size=pipeline.size),
        partial(hf_text_config, pipeline.text_encoder, pad_id=pad_id),
        partial(scheduler_config, pipeline.process, pipeline.sampler),
    )
    configs, problems = {}, []
    for name, write in zip(CONFIGS, writers, strict=True):
        try:
            configs[name] = write()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return configs


def unet_spec(fields: Fields) -> Config:
    """The tree of :class:`ldm.models.unet.UNet` for a UNet2DConditionModel's config."""
    fields = Fields(fields.name, {"addition_embed_type_num_heads": 64, **fields.values})  # 64: their default
    levels, pyramid = levels_of(fields, DOWN)
    count, channels = len(levels), fields.whole("in_channels", 4, high=MAX_WIDTH)
    refuse_channels(fields.name, channels, latents=fields.whole("out_channels", 4, high=MAX_WIDTH))
    heads = fields.wholes("attention_head_dim", 8, count=count, high=MAX_WIDTH)  # their name is wrong
    equal = len(set(heads)) == 1
    pools = fields.choice("addition_embed_type", POOLS, "none")
    transformer = {
        "_target_": TRANSFORMER,
        "levels": levels,
        **({"num_heads": heads[0]} if equal else {"head_dim": max(1, pyramid["channels"] // heads[0])}),
        **whole_numbers(fields, TRANSFORMER_NUMBERS, count=count),
        "pool_context": pools,
    }
    spec = {"_target_": UNET, "latent_channels": channels, **pyramid, "transformer": transformer}
    spec |= whole_numbers(fields, UNET_NUMBERS, count=count)
    # upcast_attention is a softmax in float32, which ours always has
    beside = {"sample_size", "upcast_attention"} | (set() if pools else POOL_FIELDS)
    linear = fields.flag("use_linear_projection")
    _refuse_others(fields, unet_config(spec, latent_size=1, linear_projection=linear), beside)
    return spec


def unet_config(spec: Mapping[str, Any], *, latent_size: int, linear_projection: bool = False) -> Config:
    """UNet2DConditionModel's config for a U-Net of ours, and latents of the usual pictures' side."""
    net = arguments(spec, target=UNET, what="the backbone")
    attention = arguments(net["transformer"], target=TRANSFORMER, what="the backbone's transformer")
    options = net | {f"transformer.{key}": value for key, value in attention.items()}
    options["multipliers[0]"] = net["multipliers"][0]
    only = {"patch": 1, "multipliers[0]": 1, "transformer.ff_mult": 4, "transformer.qk_norm": False}
    _refuse_options("the backbone", options, only)
    widths = _widths(net)
    *heads, pool_heads = (
        attention.get("num_heads") or width // attention["head_dim"]
        for width in (*widths, attention["context_dim"])
    )
    pool = {"addition_embed_type": "text", "addition_embed_type_num_heads": pool_heads}
    return {
        "_class_name": "UNet2DConditionModel",
        **UNET_FIXED,
        **(pool if attention["pool_context"] else {}),
        "sample_size": latent_size,
        "in_channels": net["latent_channels"],
        "out_channels": net["latent_channels"],
        "down_block_types": [DOWN_NAMES[level] for level in attention["levels"]],
        "up_block_types": [UP_NAMES[level] for level in reversed(attention["levels"])],
        "block_out_channels": widths,
        **{field: net[option] for option, (field, _) in UNET_NUMBERS.items()},
        **{field: attention[option] for option, (field, _) in TRANSFORMER_NUMBERS.items()},
        "attention_head_dim": heads[0] if len(set(heads)) == 1 else heads,
        "use_linear_projection": linear_projection,
    }


def vae_spec(fields: Fields) -> Config:
    """The tree of :class:`ldm.models.vae.AutoencoderKL` for a config of diffusers' class of that name."""
    spec = {
        "_target_": AUTOENCODER,
        **levels_of(fields, {VAE_DOWN: False}, width=64)[1],
        **whole_numbers(fields, VAE_NUMBERS),
        "mid_attention": fields.flag("mid_block_add_attention", True),
    }
    # force_upcast is float32 for the decoder, which ours always has
    beside = {"sample_size", "scaling_factor", "shift_factor", "force_upcast"}
    _refuse_others(fields, vae_config(spec, scale=1, size=1), beside)
    return spec


def vae_latents(fields: Fields) -> dict[str, list[float]]:
    """Shift and scale of each latent channel, as in a bundle."""
    channels = fields.whole("latent_channels", 4, high=MAX_WIDTH)
    scale = fields.number("scaling_factor", 0.18215, low=1e-6, high=1e6)
    shift = fields.number("shift_factor", 0.0, low=-1e6, high=1e6)
    return {"shift": [float(shift)] * channels, "scale": [float(scale)] * channels}


def vae_config(spec: Mapping[str, Any], *, scale: float, size: int) -> Config:
    """AutoencoderKL's config for an autoencoder of ours, its latents' scale, and pictures of `size` px."""
    net = arguments(spec, target=AUTOENCODER, what="the autoencoder")
    _refuse_options("the autoencoder", net, {"patch": 1})
    count = len(net["multipliers"])
    return {
        "_class_name": "AutoencoderKL",
        **VAE_FIXED,
        "down_block_types": [VAE_DOWN] * count,
        "up_block_types": [VAE_UP] * count,
        "block_out_channels": _widths(net),
        **{field: net[option] for option, (field, _) in VAE_NUMBERS.items()},
        "sample_size": size,
        "scaling_factor": scale,
        "force_upcast": True,
        "mid_block_add_attention": net["mid_attention"],
    }


def refuse_channels(where: object, channels: int, *, latents: int) -> None:
    """Refuses a U-Net that reads more than the `latents` channels of a noisy picture."""
    if channels != latents:
        kind = CHANNELS.get(channels, "of another kind")
        raise UserError(f"{where} has {channels} input channels, ours has {latents}: it is {kind}")


def levels_of(
    fields: Fields, kinds: Mapping[str, bool], *, width: int | None = None
) -> tuple[list[bool], Config]:
    """Whether each level has transformers, and our options for the widths of the levels."""
    key = "down_block_types"
    levels = [Fields(fields.name, {key: name}).choice(key, kinds) for name in fields.names(key)]
    first, *others = fields.wholes("block_out_channels", width, count=len(levels), high=MAX_WIDTH)
    ratios = [each // first if each % first == 0 else each / first for each in (first, *others)]
    return levels, {"channels": first, "multipliers": ratios}


def _widths(net: Mapping[str, Any]) -> list[int]:
    return [round(net["channels"] * multiplier) for multiplier in net["multipliers"]]


def _refuse_others(fields: Fields, written: Config, beside: set[str]) -> None:
    """Refuses a config that differs, beyond the fields `beside`, from what we'd write for what was read."""
    expected = {key: value for key, value in written.items() if key not in beside}
    for key, value in expected.items():
        found = fields.values.get(key)
        if isinstance(found, list) and not isinstance(value, list):  # the same for each level
            expected[key] = [value] * len(found)
    fields.only(expected)
    fields.known(written.keys() | beside)


def _refuse_options(what: str, options: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    wrong = [f"{key}={options[key]} (only {value})" for key, value in only.items() if options[key] != value]
    if wrong:
        raise UserError(f"{what} can't be written for diffusers, which lacks {', '.join(wrong)}")


def _factor(autoencoder: Config) -> int:
    """Pixels along a side of one latent; an autoencoder without levels is refused elsewhere."""
    return 2 ** (len(autoencoder.get("multipliers", [1])) - 1)
