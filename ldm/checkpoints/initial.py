"""What a training that starts from a bundle's denoiser takes from the bundle, beside the weights.

Weights mean something only under the process that they were trained with, and for the latents and text states
of their own codec. Both come from the bundle, whatever an experiment says; what was typed is taken as typed.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.resuming import BUNDLES, flat, is_below
from ldm.diffusion.process import READ_BY_DENOISER

CODEC = ("codec.autoencoder", "codec.text_encoder")


def follow_init(config: DictConfig, typed: Sequence[str]) -> Iterator[str]:
    """Sets process and codec of a config to those of its `init`; yields a line for each that was another.

    Args:
        typed: overrides of the command line. A key that is among them stays as it is, which a line says.

    Raises:
        BundleError: there is no such bundle, or it is damaged.
    """
    if config.get("init") is None or "initial" not in config.model.stage:
        return
    bundle = Bundle.open(config.init)
    own, process = OmegaConf.to_container(config.process, resolve=True), bundle.entry("process")
    if any(own.get(part) != process.get(part) for part in READ_BY_DENOISER):
        yield _set(config, "process", process, typed, source=bundle)
    for key in CODEC:
        if _read(Bundle.open(OmegaConf.select(config, key)), key) != _read(bundle, key):
            yield _set(config, key, str(config.init), typed, source=bundle)


def _read(bundle: Bundle, key: str) -> dict[str, Any]:
    """What decides the latents or the text states that a bundle's codec makes."""
    return {
        name: value
        for name, value in flat(bundle.config, aside=frozenset()).items()
        if is_below(name, BUNDLES[key])
    }


def _set(config: DictConfig, key: str, value: Any, typed: Sequence[str], *, source: Bundle) -> str:
    if any(is_below(each.lstrip("+~").partition("=")[0], (key,)) for each in typed):
        return f"{key} is as you typed it, not what the weights of init={source.path} were trained with"
    OmegaConf.update(config, key, value, merge=False)
    return (
        f"{key} is that of init={source.path}, which its weights were trained with; type {key}= for another"
    )
