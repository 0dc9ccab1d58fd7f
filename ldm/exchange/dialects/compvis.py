"""CompVis' checkpoints, one file for the whole of Stable Diffusion: the names in them against ours.

Their U-Net numbers the blocks of a side one after the other, whatever the level, and their decoder counts
levels from fine to coarse; so these tables are made for a number of levels and of blocks.
"""

from collections.abc import Iterable, Sequence

from ldm.exchange.dialects.diffusers import transformer_rules
from ldm.exchange.keymap import Rule, linear, merge, rename, renames

BACKBONE, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."  # the text encoder of Stable Diffusion 2.x
AUTOENCODER_BESIDE = ("loss.*",)  # the discriminator that an autoencoder was trained against
EMA = "model_ema."  # before the averages of the U-Net's weights

# kept beside the weights and made again here: the noise tables, the averages of all weights, the losses
LEFT_OUT = (
    *(f"{EMA}*", "betas", "alphas_cumprod*", "sqrt_*", "log_one_minus_alphas_cumprod"),
    *("posterior_*", "lvlb_weights", "logvar", "scale_factor"),
)

UNET_RESNET = {
    "in_layers.0": "norm_in",
    "in_layers.2": "conv_in",
    "emb_layers.1": "time",
    "out_layers.0": "norm_out",
    "out_layers.3": "conv_out",
    "skip_connection": "shortcut",
}
VAE_RESNET = {
    "norm1": "norm_in",
    "conv1": "conv_in",
    "norm2": "norm_out",
    "conv2": "conv_out",
    "nin_shortcut": "shortcut",
}


def averages(names: Iterable[str]) -> dict[str, str]:
    """By the name of its average, each weight of the U-Net among the names of a file.

    Averages are named as the weights within `model`, but for the dots, which a buffer's name can't have.
    """
    weights = [name for name in names if name.startswith(BACKBONE)]
    return {EMA + name.removeprefix("model.").replace(".", ""): name for name in weights}


def unet_rules(*, levels: Sequence[bool], blocks: int, linear_projection: bool = False) -> list[Rule]:
    """Names of CompVis' UNetModel against those of :class:`ldm.models.unet.UNet`.

    Args:
        levels: whether each resolution has transformers, finest first.
        blocks: residual blocks of a level on the way down; the way up has one more.
        linear_projection: false in Stable Diffusion 1.x, true in 2.x.
    """
    projection = rename if linear_projection else linear

    def unit(theirs: str, ours: str, attention: bool) -> list[Rule]:
        resnet = renames(UNET_RESNET, f"{theirs}.0.", f"{ours}.resnet.")
        return resnet + (
            transformer_rules(f"{theirs}.1", f"{ours}.transformer", projection) if attention else []
        )

    rules = [
        *renames({"time_embed.0": "time.hidden", "time_embed.2": "time.out", "input_blocks.0.0": "conv_in"}),
        *renames({"out.0": "norm_out", "out.2": "conv_out"}),
        *renames(UNET_RESNET, "middle_block.0.", "middle.0.resnet."),
        *transformer_rules("middle_block.1", "middle.0.transformer", projection),
        *renames(UNET_RESNET, "middle_block.2.", "middle.1.resnet."),
    ]
    for level, attention in enumerate(levels):
        first = 1 + level * (blocks + 1)  # after the entry, a level is its blocks and a downsampler
        for block in range(blocks):
            rules += unit(f"input_blocks.{first + block}", f"down.{level}.units.{block}", attention)
        rules.append(rename(f"input_blocks.{first + blocks}.0.op.*", f"down.{level}.resample.conv.*"))
    for level, attention in enumerate(reversed(levels)):
        first = level * (blocks + 1)  # the upsampler is a further part of a level's last block
        for block in range(blocks + 1):
            rules += unit(f"output_blocks.{first + block}", f"up.{level}.units.{block}", attention)
        resample = f"output_blocks.{first + blocks}.{1 + attention}.conv.*"
        rules.append(rename(resample, f"up.{level}.resample.conv.*"))
    return rules


def vae_rules(*, num_levels: int) -> list[Rule]:
    """Names of CompVis' AutoencoderKL against those of :class:`ldm.models.vae.AutoencoderKL`."""
    rules = renames({"quant_conv": "to_moments", "post_quant_conv": "from_latents"})
    for level in range(num_levels):
        for theirs, ours, resample in (
            (f"encoder.down.{level}", f"encoder.levels.{level}", "downsample"),
            (f"decoder.up.{num_levels - 1 - level}", f"decoder.levels.{level}", "upsample"),
        ):
            rules += renames(VAE_RESNET, f"{theirs}.block.{{}}.", f"{ours}.blocks.{{}}.")
            rules.append(rename(f"{theirs}.{resample}.conv.*", f"{ours}.resample.conv.*"))
    for side in ("encoder", "decoder"):
        theirs, ours = f"{side}.mid.attn_1", f"{side}.middle.attention"
        rules += [
            *renames({name: name for name in ("conv_in", "norm_out", "conv_out")}, f"{side}.", f"{side}."),
            *renames(VAE_RESNET, f"{side}.mid.block_1.", f"{side}.middle.block_in."),
            *renames(VAE_RESNET, f"{side}.mid.block_2.", f"{side}.middle.block_out."),
            rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
            merge([f"{theirs}.{x}.weight" for x in "qkv"], f"{ours}.attention.qkv.weight", convolutions=True),
            merge([f"{theirs}.{x}.bias" for x in "qkv"], f"{ours}.attention.qkv.bias"),
            linear(f"{theirs}.proj_out.weight", f"{ours}.attention.out.weight"),
            rename(f"{theirs}.proj_out.bias", f"{ours}.attention.out.bias"),
        ]
    return rules
