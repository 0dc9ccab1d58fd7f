"""Computes the latents of a prepared set before training: `python -m data_prep.latents root=... ...`.

Moments (mean and log-variance, float16) go to `<root>/latents`, captions to `<root>/texts`, or below
`cache=<folder>`, which a training then needs as `data.cache=<folder>`. A training with the same data,
autoencoder and flip finds them there; any other training computes its own. If interrupted, the same command
resumes.
"""

import sys
import time
from dataclasses import dataclass

from data_prep.command_line import command_line, option
from ldm import UserError
from ldm.data.index import ShardIndex
from ldm.data.shards import PictureDataset


@dataclass(kw_only=True)
class Options:
    """What is encoded, by which networks, and where."""

    root: str = option("data/flickr30k", "Folder of the prepared set.")
    cache: str = option("", "Folder that is written to; empty: beside the data.")
    size: int = option(256, "Side of the pictures in pixels.")
    autoencoder: str = option("runs/flickr_vae", "Bundle, run or experiment that holds the autoencoder.")
    text_encoder: str = option("runs/flickr_clip", "Bundle, run or experiment that holds the text encoder.")
    flip: bool = option(False, "Encode each training picture mirrored, too.")
    texts: str = option("tokens", "tokens, or states: the text encoder's output for each caption.")
    device: str = option("auto", "auto, cpu or cuda.")


def main(options: Options) -> None:
    """Encodes the training and the validation pictures and their captions.

    Raises:
        UserError: an unknown kind of texts, or a size that the autoencoder can't divide.
        DataError, BundleError: no such set or networks.
    """
    from ldm.data.stored import stored_moments, stored_states, stored_tokens  # import torch: seconds
    from ldm.generators.diffusion_bundle import load_codec

    kinds = {"tokens": stored_tokens, "states": stored_states}
    if options.texts not in kinds:
        raise UserError(f"texts={options.texts} is unknown: write {' or '.join(kinds)}")
    names = [name for name in ("train", "val") if name in ShardIndex.load(options.root).splits]
    cache = options.cache or None
    splits = [PictureDataset(options.root, split=name, size=options.size, cache=cache) for name in names]
    codec = load_codec(autoencoder=options.autoencoder, text_encoder=options.text_encoder)
    codec.latent_shape(options.size)
    codec.to(device_of(options.device))
    for pictures in splits:
        started = time.perf_counter()
        recipe = stored_moments(pictures, codec, mirrored=options.flip and pictures.split == "train")
        moments, texts = recipe.arrays(), kinds[options.texts](pictures, codec).arrays()
        captions = [text for own in pictures.texts() for text in own]
        if line := codec.tokenizer.cut_line(captions, what="caption"):
            print(f"{pictures.split}: {line}")
        seconds = time.perf_counter() - started
        print(
            f"{pictures.split}: {len(moments)} pictures, moments {moments.shape}, {options.texts} "
            f"{texts.shape}, {seconds:.0f} s, {moments.folder}"
        )


def device_of(name: str) -> str:
    """A device by name; `auto` is a GPU where there is one."""
    import torch

    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    command_line(main, Options, sys.argv[1:])
