"""A large pipeline in little memory: networks at rest give back theirs, and what is cast is kept cast."""

from functools import partial

import torch
from torch import nn

from ldm.checkpoints.bundle import Bundle
from ldm.pipeline import TextToImage

PORTION = 2**28  # bytes of weights that are read before their memory is given back


def thrifty(pipeline: TextToImage, bundle: Bundle) -> TextToImage:
    """The same pipeline, of whose large networks only the one at work is in memory.

    The text encoder is done once prompts are states, the denoiser once pictures are decoded. Both are read
    again for the next pictures.
    """
    codec = pipeline.codec
    codec.text_encoder.register_forward_hook(partial(_give_back, bundle, "text_encoder"))
    codec.autoencoder.decoder.register_forward_pre_hook(partial(_give_back, bundle, "backbone"))
    return pipeline


def held_in(dtype: torch.dtype, net: nn.Module, bundle: Bundle) -> nn.Module:
    """A bundle's denoiser with the weights of its matrix products in the dtype that autocast casts them to.

    Under autocast it computes the same to the bit, without a cast at every call.
    """
    read = 0
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.dtype != dtype:
            read += module.weight.nbytes
            module.to(dtype)
        if read > PORTION:
            bundle.give_back("backbone")
            read = 0
    return net


def _give_back(bundle: Bundle, name: str, *_: object) -> None:
    bundle.give_back(name)
