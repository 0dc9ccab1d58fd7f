"""The problem sizes at which speed is measured, the same ones in every benchmark: `--shape tiny base sd`.

A choice between two implementations is made at the size at hand: what wins with 64 tokens may lose with
1,024. `toy` is for rehearsals: it shows that a benchmark works, and its times say nothing.
"""

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ProblemSize:
    """Sizes of the networks of a latent diffusion model, and of what they are given.

    Attributes:
        latents: channels and side of the latents.
        widths: channels of each level of the U-Net.
        attends: whether a level has transformers.
        blocks: residual blocks per level.
        heads: attention heads of each level.
        groups: of the U-Net's group norms.
        context: tokens of a prompt, and their width.
        batch: samples per step.
        autoencoder: channels of each level of the autoencoder, which halves the side once less.
        autoencoder_blocks, autoencoder_groups: residual blocks per level, groups of its norms.
        text: layers and heads of the text encoder.
        steps: of a timed sampling loop.
        optimizer: whether two AdamW, ours and diffusers', fit into 24 GB beside each other.
    """

    latents: tuple[int, int]
    widths: tuple[int, ...]
    attends: tuple[bool, ...]
    blocks: int
    heads: tuple[int, ...]
    groups: int
    context: tuple[int, int]
    batch: int
    autoencoder: tuple[int, ...] = (128, 256, 512, 512)
    autoencoder_blocks: int = 2
    autoencoder_groups: int = 32
    text: tuple[int, int] = (12, 8)
    steps: int = 20
    optimizer: bool = True

    @property
    def pixels(self) -> int:
        """The side of a picture."""
        return self.latents[1] * 2 ** (len(self.autoencoder) - 1)

    @property
    def head_dim(self) -> int | None:
        """Channels of a head; None where all levels have the same number of heads."""
        return None if len(set(self.heads)) == 1 else self.widths[0] // self.heads[0]

    def unet(self) -> Config:
        """The U-Net as diffusers configures it."""
        down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in self.attends]
        up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(self.attends)]
        channels, side = self.latents
        return {
            "sample_size": side,
            "in_channels": channels,
            "out_channels": channels,
            "block_out_channels": list(self.widths),
            "down_block_types": down,
            "up_block_types": up,
            "layers_per_block": self.blocks,
            "norm_num_groups": self.groups,
            "cross_attention_dim": self.context[1],
            "attention_head_dim": list(self.heads),  # their name for the number of heads
        }

    def vae(self) -> Config:
        """The autoencoder as diffusers configures it."""
        levels = len(self.autoencoder)
        return {
            "sample_size": self.pixels,
            "latent_channels": self.latents[0],
            "block_out_channels": list(self.autoencoder),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "layers_per_block": self.autoencoder_blocks,
            "norm_num_groups": self.autoencoder_groups,
        }

    def text_encoder(self) -> Config:
        """The text encoder as transformers configures it."""
        (tokens, width), (layers, heads) = self.context, self.text
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "max_position_embeddings": tokens}
        return sizes | {"num_hidden_layers": layers, "num_attention_heads": heads}

    def backbone(self) -> Config:
        """The options of our `UNet` with the weights of diffusers'."""
        return {
            "latent_channels": self.latents[0],
            "channels": self.widths[0],
            "multipliers": [each // self.widths[0] for each in self.widths],
            "blocks_per_level": self.blocks,
            "norm_groups": self.groups,
        }

    def transformer(self) -> Config:
        """The options of its `TransformerSpec`."""
        return {
            "context_dim": self.context[1],
            "levels": list(self.attends),
            "num_heads": self.heads[0] if self.head_dim is None else None,
            "head_dim": self.head_dim,
        }

    def overrides(self, pipeline: Path) -> list[str]:
        """`sd15_finetune` at this size, from the bundle of an imported pipeline.

        Activation checkpointing and accumulation are off, as by default in diffusers' script.
        """
        options = {
            **{f"backbone.{name}": value for name, value in self.backbone().items()},
            **{f"backbone.transformer.{name}": value for name, value in self.transformer().items()},
            "backbone.checkpointing": False,
            "trainer.accumulate_grad_batches": 1,
            "batch_size": self.batch,
            "data.size": self.pixels,
            "data.num_workers": 0,
            "init": pipeline,
        }
        return ["+experiment=sd15_finetune", *(f"{name}={written(value)}" for name, value in options.items())]


def written(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


TOY = ProblemSize(
    latents=(4, 8),
    widths=(32, 64),
    attends=(True, False),
    blocks=1,
    heads=(2, 2),
    groups=8,
    context=(77, 32),
    batch=2,
    autoencoder=(16, 16, 32, 32),
    autoencoder_blocks=1,
    autoencoder_groups=8,
    text=(2, 2),
    steps=2,
)
SIZES = {
    "tiny": ProblemSize(
        latents=(32, 8),
        widths=(128, 128),
        attends=(True, True),
        blocks=1,
        heads=(4, 4),
        groups=8,
        context=(32, 128),
        batch=64,
        autoencoder=(16, 32, 64, 64),
        autoencoder_blocks=1,
        autoencoder_groups=8,
        text=(12, 4),
    ),
    "base": ProblemSize(
        latents=(4, 32),
        widths=(128, 256, 384),
        attends=(True, True, True),
        blocks=2,
        heads=(2, 4, 6),
        groups=32,
        context=(77, 512),
        batch=4,
        steps=4,
    ),
    "sd": ProblemSize(
        latents=(4, 64),
        widths=(320, 640, 1280, 1280),
        attends=(True, True, True, False),
        blocks=2,
        heads=(8, 8, 8, 8),
        groups=32,
        context=(77, 768),
        batch=1,
        text=(12, 12),
        steps=1,
        optimizer=False,
    ),
}
EVERY = SIZES | {"toy": TOY}


def add_shape(parser: ArgumentParser, *default: str) -> None:
    """Adds `--shape`, one or several of the sizes.

    Args:
        default: names; without any, all but the toy.
    """
    names = list(default or SIZES)
    told = "8x8 latents | 32x32, 70 M parameters, 256 px | Stable Diffusion's 64x64, 860 M | for rehearsals"
    parser.add_argument("--shape", nargs="+", choices=EVERY, default=names, help=told)
