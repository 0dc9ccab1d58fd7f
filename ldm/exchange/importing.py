"""Foreign weights of any kind as the contents of a bundle.

| what is found                                      | becomes                              |
|----------------------------------------------------|--------------------------------------|
| a diffusers folder with model_index.json           | a text-to-image bundle               |
| a file with CompVis' names, .ckpt or .safetensors  | a text-to-image bundle               |
| one of their autoencoder alone                     | a bundle of that part                |
| a folder of one diffusers or transformers network  | a bundle of that part                |
| a file with OpenAI's or open_clip's names          | a bundle of both towers of CLIP      |
"""

from collections.abc import Callable, Collection
from dataclasses import replace

from ldm import UserError
from ldm.exchange.architecture import Architecture
from ldm.exchange.clip_import import import_openclip, is_openclip
from ldm.exchange.dialects.compvis import averages
from ldm.exchange.diffusers_folder import import_network, import_pipeline, is_pipeline
from ldm.exchange.hub import Source
from ldm.exchange.imported import Imported
from ldm.exchange.kinds import refuse_header, refuse_names
from ldm.exchange.settling import asked
from ldm.exchange.single_file import (
    import_autoencoder,
    import_single_file,
    is_autoencoder_file,
    is_single_file,
)
from ldm.exchange.weights import Weights
from ldm.tokenizers import Tokenizer


def import_weights(
    source: Source,
    *,
    architecture: Architecture,
    tokenizer: Callable[[], Tokenizer],
    clip: str | None = None,
    text_state: str | None = None,
    averaged: bool = False,
    typed: Collection[str] = (),
    trusted: bool = True,
) -> Imported:
    """Reads whatever a source holds; it is compared with our networks in full before a weight is read.

    Args:
        architecture, tokenizer: of a file with CompVis' names that does not carry its own.
        clip: open_clip's model that a file of CLIP's weights is of.
        text_state: which state of a pipeline's text encoder the denoiser reads, last or penultimate; None is
            what the file says, else what Stable Diffusion of its version does.
        averaged: whether to take the averages of the weights that a training's file holds beside them.
        typed: the options that the user typed: process, latent_scale, sampler, size.
        trusted: whether what a file says of its process and latents counts.

    Raises:
        UserError: contents that are unknown, damaged, unsafe, don't fit our networks, or contradict an
            option that was typed.
    """
    path = source.path
    says = {"typed": typed, "trusted": trusted}
    weights = None if path.is_dir() else Weights(path)
    ema = averages(weights.outline) if averaged and weights else {}
    if averaged and (not weights or not ema or ema.keys() - weights.outline.keys()):
        raise UserError(
            f"{path} does not hold an average (model_ema.*) of each weight: leave weights=ema out"
        )
    if weights is None:
        read = import_pipeline if is_pipeline(path) else import_network
        found = read(path, text_state=text_state)
        return replace(found, settings=asked(found.settings, architecture, where=path, **says))
    refuse_names(path, weights.outline)
    refuse_header(path, weights.metadata)
    if is_single_file(weights):
        found = import_single_file(
            replace(weights, renamed=ema),
            architecture=architecture,
            tokenizer=tokenizer,
            text_state=text_state,
            **says,
        )
        return replace(found, settings=asked(found.settings, architecture, where=path, **says))
    if is_autoencoder_file(weights):
        return import_autoencoder(weights, architecture=architecture, **says)
    if is_openclip(weights):
        return import_openclip(source, weights, model=clip)
    some = ", ".join(sorted(weights.outline)[:3])
    raise UserError(f"{path} holds no Stable Diffusion, autoencoder or CLIP, but tensors such as {some}")
