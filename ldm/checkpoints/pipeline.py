"""From a bundle to a pipeline."""

from dataclasses import replace

import torch

from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.construct import construct
from ldm.diffusion import Guidance
from ldm.diffusion.samplers import Sampling
from ldm.pipeline import TextToImage


def open_pipeline(
    bundle: Bundle,
    *,
    sampling: Sampling | None = None,
    guidance: Guidance | None = None,
    steps: int | None = None,
    scale: float | None = None,
    precision: torch.dtype = torch.float32,
) -> TextToImage:
    """The bundle's pipeline, with its own sampler and guidance unless others are given.

    Args:
        steps, scale: change the number of sampling steps or the guidance scale of whichever is used.

    Raises:
        BundleError: a bundle without a denoiser.
    """
    if "backbone" not in bundle.names:
        raise BundleError(f"bundle {bundle.path} holds no denoiser, only {', '.join(bundle.names)}: it can't draw")
    config = bundle.config
    sampling = sampling or construct(config["sampler"])
    if steps is not None:
        sampling = replace(sampling, steps=steps)
    if guidance is None:
        chosen = config["guidance"] if scale is None else with_scale(config["guidance"], scale)
        guidance = construct(chosen)
    return TextToImage(
        net=bundle.network("backbone").requires_grad_(False),
        process=construct(config["process"]),
        codec=bundle.codec(),
        sampling=sampling,
        guidance=guidance,
        size=config["size"],
        precision=precision,
    )


def with_scale(guidance: dict, scale: float) -> dict:
    """A guidance's constructor with another scale, also where it lies inside another guidance.

    Raises:
        ValueError: a guidance that has no scale.
    """
    if "scale" in guidance:
        return guidance | {"scale": scale}
    if "within" in guidance:
        return guidance | {"within": with_scale(guidance["within"], scale)}
    raise ValueError(f"guidance {guidance['_target_']} has no scale to set to {scale}: choose guidance=cfg")
