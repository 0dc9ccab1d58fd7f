"""A trained denoiser as a bundle, with the autoencoder and the text encoder that it was trained beside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldm.checkpoints.bundle import Bundle, Part, write_bundle

WAYS = ("process", "sampler", "guidance")


class CodecBundles(NamedTuple):
    """Where the frozen parts lie.

    Attributes:
        pictures: holds the autoencoder.
        texts: holds the text encoder, its tokenizer, and perhaps the image encoder that was trained with it.
    """

    pictures: Bundle
    texts: Bundle

    @classmethod
    def named(cls, config: Mapping[str, Any]) -> "CodecBundles":
        """Those that a training's config names."""
        return cls(*(Bundle.open(config["codec"][name]) for name in ("autoencoder", "text_encoder")))

    @property
    def origins(self) -> dict[str, Any]:
        """What is told of their trainings."""
        return {
            "autoencoder": self.pictures.entry("origin"),
            "text_encoder": self.texts.entry("origin"),
        }


def write_denoiser(
    path: Path,
    backbone: Part,
    codec: CodecBundles,
    *,
    config: Mapping[str, Any],
    size: int,
    origin: Mapping[str, Any],
    codec_origin: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> Path:
    """Writes the bundle: the codec's parts as they came, and how to sample.

    Args:
        path: the folder to make.
        config: of the training; its process, sampler and guidance are written down.
        size: of the pictures, in pixels.
        origin, codec_origin: what is told of the trainings.
        dtype: of the stored weights.

    Raises:
        NameTaken: `path` is there already.
    """
    texts = [name for name in ("text_encoder", "image_encoder") if name in codec.texts.names]
    parts = {"backbone": backbone, "autoencoder": codec.pictures.part("autoencoder")}
    parts |= {name: codec.texts.part(name) for name in texts}
    settings = {
        "size": size,
        "latents": codec.pictures.entry("latents"),
        **{name: config[name] for name in WAYS},
        "origin": dict(origin),
        "codec_origin": dict(codec_origin),
    }
    return write_bundle(path, parts=parts, tokenizer=codec.texts.tokenizer(), settings=settings, dtype=dtype)
