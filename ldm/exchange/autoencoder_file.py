"""An autoencoder alone in one file with CompVis' names: a first stage, or another decoder to its latents."""

from fnmatch import fnmatchcase

from ldm.exchange import compvis
from ldm.exchange.architecture import Architecture
from ldm.exchange.imported import Imported, files_of, read_parts
from ldm.exchange.weights import Fit, Weights

MARK = "encoder.mid.block_1.conv1.weight"  # diffusers' autoencoders have mid_block there
LEFT_OUT = ("loss.*", "model_ema.*")  # the discriminator that it was trained against, averages of all weights


def is_autoencoder_file(weights: Weights) -> bool:
    """Whether a file has the names of CompVis' autoencoder without a pipeline's prefixes."""
    return MARK in weights.outline


def import_autoencoder(weights: Weights, *, architecture: Architecture) -> Imported:
    """The autoencoder of a file, and the scale of its latents.

    Args:
        architecture: what the file is of, which its names do not tell.

    Raises:
        ValueError: tensors that don't fit the architecture.
    """
    spec = architecture.autoencoder
    rules = compvis.vae_rules(num_levels=len(spec["multipliers"]))
    fits = {"autoencoder": Fit(spec=spec, weights=weights, rules=rules, drop=LEFT_OUT)}
    return Imported(
        parts=read_parts(fits),
        settings={"latents": dict(architecture.latents)},
        files=files_of(fits),
        left_out=[glob for glob in LEFT_OUT if any(fnmatchcase(name, glob) for name in weights.outline)],
    )
