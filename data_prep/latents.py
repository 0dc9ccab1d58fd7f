"""Latents of a prepared set, ahead of training: `python -m data_prep.latents root=data/flickr30k ...`.

  root          folder of shards                                           data/flickr30k
  size          side of the pictures in pixels                             256
  autoencoder   bundle, run or experiment that holds the autoencoder       runs/flickr_vae
  text_encoder  bundle, run or experiment that holds the text encoder      runs/flickr_clip
  flip          encode each training picture mirrored, too                 false
  texts         tokens, or states: what the text encoder makes of them     tokens
  device        auto, cpu or cuda                                          auto

Moments (mean and log-variance, float16) go to `<root>/latents`, captions to `<root>/texts`, named by what
decides them: a training with the same data, autoencoder and flip finds them there, any other makes its own.
What was stopped goes on when it is started again.
"""

import sys
import time
from dataclasses import dataclass

import torch

from ldm.checkpoints.bundle import load_codec
from ldm.config import command_line
from ldm.data.moments import stored_moments
from ldm.data.pictures import PictureDataset
from ldm.data.texts import stored_states, stored_tokens

TEXTS = {"tokens": stored_tokens, "states": stored_states}


@dataclass(kw_only=True)
class Options:
    """What is encoded, by which networks, and where."""

    root: str = "data/flickr30k"
    size: int = 256
    autoencoder: str = "runs/flickr_vae"
    text_encoder: str = "runs/flickr_clip"
    flip: bool = False
    texts: str = "tokens"
    device: str = "auto"


def main(options: Options) -> None:
    """Encodes the training and the validation pictures and their captions.

    Raises:
        ValueError: an unknown kind of texts, or a size that the autoencoder can't divide.
        DataError, BundleError: no such set or networks.
    """
    if options.texts not in TEXTS:
        raise ValueError(f"texts={options.texts} is unknown: write {' or '.join(TEXTS)}")
    splits = [PictureDataset(options.root, split=name, size=options.size) for name in ("train", "val")]
    codec = load_codec(autoencoder=options.autoencoder, text_encoder=options.text_encoder)
    codec.latent_shape(options.size)
    codec.to(device_of(options.device))
    for pictures in splits:
        started = time.perf_counter()
        moments = stored_moments(pictures, codec, mirrored=options.flip and pictures.split == "train")
        texts = TEXTS[options.texts](pictures, codec)
        seconds = time.perf_counter() - started
        print(
            f"{pictures.split}: {len(moments)} pictures {moments.shape}, {len(texts.rows)} captions "
            f"{texts.rows.shape[1:]}, {seconds:.0f} s, {moments.folder}"
        )


def device_of(name: str) -> str:
    """A device by name; `auto` is a GPU where there is one."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
