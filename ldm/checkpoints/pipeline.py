"""From a bundle to a pipeline."""

from collections.abc import Mapping
from typing import Any

import torch

from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.construct import construct
from ldm.pipeline import TextToImage

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def sampling_nodes(bundle: Bundle, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `sampler` and `guidance` nodes to draw with: a command's own or the bundle's, changed as it asks.

    Args:
        config: may hold `sampler` and `guidance`, and `steps` and `scale` that change whichever is used.

    Raises:
        BundleError: a bundle without a denoiser.
        ValueError: a scale for a guidance that has none.
    """
    if "backbone" not in bundle.names:
        held = ", ".join(bundle.names)
        raise BundleError(f"bundle {bundle.path} can't draw: it has no denoiser, only {held}")
    nodes = {name: config.get(name) or bundle.entry(name) for name in ("sampler", "guidance")}
    if config.get("steps") is not None:
        nodes["sampler"] = nodes["sampler"] | {"steps": config["steps"]}
    if config.get("scale") is not None:
        nodes["guidance"] = with_scale(nodes["guidance"], config["scale"])
    return nodes


def open_pipeline(bundle: Bundle, *, precision: str = "float32", **options: Any) -> TextToImage:
    """The pipeline of a bundle.

    Args:
        precision: of the denoiser's matrix products, float32 or bfloat16.
        options: `sampler`, `guidance`, `steps`, `scale`: what `sampling_nodes` reads.

    Raises:
        BundleError: a bundle without a denoiser.
        ValueError: an unknown precision, or a scale for a guidance that has none.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"{precision=} is unknown: write {' or '.join(PRECISIONS)}")
    nodes = sampling_nodes(bundle, options)
    return TextToImage(
        net=bundle.network("backbone").requires_grad_(False),
        process=construct(bundle.entry("process")),
        codec=bundle.codec(),
        sampling=construct(nodes["sampler"]),
        guidance=construct(nodes["guidance"]),
        size=bundle.entry("size"),
        precision=PRECISIONS[precision],
    )


def with_scale(guidance: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A guidance's constructor with another scale, also where it lies inside another guidance.

    Raises:
        ValueError: a guidance that has no scale.
    """
    if "scale" in guidance:
        return guidance | {"scale": float(scale)}
    if "within" in guidance:
        return {**guidance, "within": with_scale(guidance["within"], scale)}
    raise ValueError(f"guidance {guidance['_target_']} has no scale to set to {scale}: choose guidance=cfg")
