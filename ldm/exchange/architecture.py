"""A text-to-image pipeline without its weights: our `_target_` trees, or the four configs of diffusers."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ldm import UserError
from ldm.exchange.dialects.clip import hf_text_config, hf_text_spec
from ldm.exchange.dialects.diffusers import unet_config, unet_spec, vae_config, vae_latents, vae_spec
from ldm.exchange.dialects.processes import process_spec
from ldm.exchange.dialects.schedulers import GUIDANCE, sampling_spec, scheduler_config
from ldm.io.fields import Fields

Config = dict[str, Any]
CONFIGS = ("unet", "vae", "text_encoder", "scheduler")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What builds a pipeline but for its weights and tokenizer.

    Attributes:
        backbone, autoencoder, text_encoder, process, sampler: `_target_` trees.
        latents: `shift` and `scale` of each latent channel.
        size: side of the pictures in pixels.
        linear_projection: whether diffusers' U-Net keeps its projections as linear layers.
    """

    backbone: Config
    autoencoder: Config
    text_encoder: Config
    process: Config
    sampler: Config
    latents: Mapping[str, list[float]]
    size: int
    linear_projection: bool = False

    def __post_init__(self) -> None:
        width, context = self.text_encoder["width"], self.backbone["transformer"]["context_dim"]
        if width != context:
            raise UserError(
                f"the U-Net's cross_attention_dim is {context}, but the text encoder's states have {width}"
            )
        channels, latents = self.backbone["latent_channels"], self.autoencoder["latent_channels"]
        if channels != latents:
            raise UserError(f"the U-Net's in_channels is {channels}, but the autoencoder has {latents}")

    def settings(self) -> Config:
        """The entries of a bundle's config, but for those of its parts."""
        names = ("size", "latents", "process", "sampler", "linear_projection")
        return {name: value for name, value in asdict(self).items() if name in names} | {
            "guidance": dict(GUIDANCE)
        }


def from_configs(configs: Mapping[str, Fields]) -> Architecture:
    """The pipeline of diffusers' configs under the names in CONFIGS.

    Raises:
        UserError: a field that ours lacks, or two configs that disagree.
    """
    unet, vae, text, scheduler = (configs[name] for name in CONFIGS)
    backbone, autoencoder, text_encoder = unet_spec(unet), vae_spec(vae), hf_text_spec(text)
    return Architecture(
        backbone=backbone,
        autoencoder=autoencoder,
        text_encoder=text_encoder,
        process=process_spec(scheduler),
        sampler=sampling_spec(scheduler),
        latents=vae_latents(vae),
        size=unet.whole("sample_size", high=4096) * _factor(autoencoder),
        linear_projection=unet.flag("use_linear_projection"),
    )


def to_configs(pipeline: Architecture, *, pad_id: int) -> dict[str, Config]:
    """diffusers' configs of a pipeline whose latents have one scale and no shift.

    Args:
        pad_id: the id that the tokenizer pads with.

    Raises:
        UserError: one sentence with every option that diffusers lacks.
    """
    latent_size = pipeline.size // _factor(pipeline.autoencoder)
    linear, scale = pipeline.linear_projection, pipeline.latents["scale"][0]
    writers: dict[str, Callable[[], Config]] = {
        "unet": lambda: unet_config(pipeline.backbone, latent_size=latent_size, linear_projection=linear),
        "vae": lambda: vae_config(pipeline.autoencoder, scale=scale, size=pipeline.size),
        "text_encoder": lambda: hf_text_config(pipeline.text_encoder, pad_id=pad_id),
        "scheduler": lambda: scheduler_config(pipeline.process, pipeline.sampler),
    }
    configs: dict[str, Config] = {}
    problems: list[str] = []
    for name, write in writers.items():
        try:
            configs[name] = write()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return configs


def _factor(autoencoder: Config) -> int:
    """Pixels along a side of one latent; an autoencoder without levels has no place in diffusers anyway."""
    return 2 ** (len(autoencoder.get("multipliers", [1])) - 1)
