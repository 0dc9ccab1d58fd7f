"""Names in CompVis' checkpoints, one file for the whole of Stable Diffusion 1.x, against ours.

Their U-Net numbers the blocks of a side one after the other, whatever the level, and their decoder counts
levels from fine to coarse; so these tables are made for a number of levels and of blocks.
"""

from collections.abc import Callable, Sequence

from ldm.exchange.diffusers import transformer_rules
from ldm.exchange.keymap import Rule, linear, merge, rename

BACKBONE, AUTOENCODER = "model.diffusion_model.", "first_stage_model."
TEXT_ENCODER = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."  # the text encoder of Stable Diffusion 2.x
AUTOENCODER_BESIDE = ("loss.*",)  # the discriminator that an autoencoder was trained against

# kept beside the weights and made again here: the noise tables, the averages of all weights, the losses
LEFT_OUT = (
    "model_ema.*",
    "betas",
    "alphas_cumprod*",
    "sqrt_*",
    "log_one_minus_alphas_cumprod",
    "posterior_*",
    "lvlb_weights",
    "logvar",
    "scale_factor",
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


def unet_rules(*, levels: Sequence[bool], blocks: int, linear_projection: bool = False) -> list[Rule]:
    """CompVis' UNetModel to :class:`ldm.models.unet.UNet`.

    Args:
        levels: whether each resolution has transformers, finest first.
        blocks: residual blocks of a level on the way down.
        linear_projection: false in Stable Diffusion 1.x, true in 2.x.
    """
    projection = rename if linear_projection else linear
    return [
        rename("time_embed.0.*", "time.hidden.*"),
        rename("time_embed.2.*", "time.out.*"),
        rename("input_blocks.0.0.*", "conv_in.*"),
        *_down(levels, blocks, projection),
        *_renamed(UNET_RESNET, "middle_block.0", "middle.0.resnet"),
        *transformer_rules("middle_block.1", "middle.0.transformer", projection),
        *_renamed(UNET_RESNET, "middle_block.2", "middle.1.resnet"),
        *_up(levels, blocks + 1, projection),
        rename("out.0.*", "norm_out.*"),
        rename("out.2.*", "conv_out.*"),
    ]


def vae_rules(*, num_levels: int) -> list[Rule]:
    """CompVis' AutoencoderKL to :class:`ldm.models.vae.AutoencoderKL`."""
    rules = [rename("quant_conv.*", "to_moments.*"), rename("post_quant_conv.*", "from_latents.*")]
    for level in range(num_levels):
        rules += _vae_level(f"encoder.down.{level}", f"encoder.levels.{level}", "downsample")
        rules += _vae_level(f"decoder.up.{num_levels - 1 - level}", f"decoder.levels.{level}", "upsample")
    for side in ("encoder", "decoder"):
        rules += [
            rename(f"{side}.{name}.*", f"{side}.{name}.*") for name in ("conv_in", "norm_out", "conv_out")
        ]
        rules += _renamed(VAE_RESNET, f"{side}.mid.block_1", f"{side}.middle.block_in")
        rules += _renamed(VAE_RESNET, f"{side}.mid.block_2", f"{side}.middle.block_out")
        rules += _vae_attention(f"{side}.mid.attn_1", f"{side}.middle.attention")
    return rules


def _renamed(table: dict[str, str], theirs: str, ours: str) -> list[Rule]:
    return [rename(f"{theirs}.{a}.*", f"{ours}.{b}.*") for a, b in table.items()]


def _down(levels: Sequence[bool], blocks: int, projection: Callable[[str, str], Rule]) -> list[Rule]:
    rules: list[Rule] = []
    for level, attention in enumerate(levels):
        for block in range(blocks):
            theirs = f"input_blocks.{1 + level * (blocks + 1) + block}"
            rules += _unit(theirs, f"down.{level}.units.{block}", attention, projection)
        resample = f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.*"
        rules.append(rename(resample, f"down.{level}.resample.conv.*"))
    return rules


def _up(levels: Sequence[bool], blocks: int, projection: Callable[[str, str], Rule]) -> list[Rule]:
    rules: list[Rule] = []
    for level, attention in enumerate(reversed(levels)):
        for block in range(blocks):
            theirs = f"output_blocks.{level * blocks + block}"
            rules += _unit(theirs, f"up.{level}.units.{block}", attention, projection)
        resample = f"output_blocks.{(level + 1) * blocks - 1}.{1 + attention}.conv.*"
        rules.append(rename(resample, f"up.{level}.resample.conv.*"))
    return rules


def _unit(theirs: str, ours: str, attention: bool, projection: Callable[[str, str], Rule]) -> list[Rule]:
    rules = _renamed(UNET_RESNET, f"{theirs}.0", f"{ours}.resnet")
    return rules + (transformer_rules(f"{theirs}.1", f"{ours}.transformer", projection) if attention else [])


def _vae_level(theirs: str, ours: str, resample: str) -> list[Rule]:
    return [
        *_renamed(VAE_RESNET, f"{theirs}.block.{{}}", f"{ours}.blocks.{{}}"),
        rename(f"{theirs}.{resample}.conv.*", f"{ours}.resample.conv.*"),
    ]


def _vae_attention(theirs: str, ours: str) -> list[Rule]:
    return [
        rename(f"{theirs}.norm.*", f"{ours}.norm.*"),
        merge([f"{theirs}.{x}.weight" for x in "qkv"], f"{ours}.attention.qkv.weight", convolutions=True),
        linear(f"{theirs}.proj_out.weight", f"{ours}.attention.out.weight"),
        rename(f"{theirs}.proj_out.bias", f"{ours}.attention.out.bias"),
        merge([f"{theirs}.{x}.bias" for x in "qkv"], f"{ours}.attention.qkv.bias"),
    ]
