"""From a bundle to a pipeline."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import UNBUILDABLE, Bundle, BundleError
from ldm.checkpoints.thrift import held_in, thrifty
from ldm.construct import accepts, construct
from ldm.diffusion import Guidance
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampling
from ldm.pipeline import TextToImage

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
READ_BY_DENOISER = ("schedule", "prediction", "network_time")  # of a process; the rest is for training


def sampling_nodes(bundle: Bundle, config: Mapping[str, Any]) -> dict[str, Any]:
    """The `sampler` and `guidance` nodes to draw with: a command's own or the bundle's, changed as it asks.

    Args:
        config: may hold `sampler` and `guidance`, and `grid`, `steps`, `scale` that change whichever is used.

    Raises:
        BundleError: a bundle without a denoiser.
        UserError: a scale for a guidance that has none.
    """
    if "backbone" not in bundle.names:
        held = ", ".join(bundle.names)
        raise BundleError(f"bundle {bundle.path} can't draw: it has no denoiser, only {held}")
    nodes = {name: config.get(name) or bundle.entry(name) for name in ("sampler", "guidance")}
    if config.get("grid") is not None:
        nodes["sampler"] = nodes["sampler"] | {"grid": config["grid"]}
    if config.get("steps") is not None:
        nodes["sampler"] = nodes["sampler"] | {"steps": config["steps"]}
    if config.get("scale") is not None:
        nodes["guidance"] = with_scale(nodes["guidance"], config["scale"])
    return nodes


def open_pipeline(bundle: Bundle, *, precision: str = "float32", **options: Any) -> TextToImage:
    """The pipeline of a bundle.

    Args:
        precision: of the denoiser's matrix products, float32 or bfloat16.
        options: `sampler`, `guidance`, `grid`, `steps`, `scale`: what `sampling_nodes` reads.

    Raises:
        BundleError: a bundle without a denoiser, or a weak one that doesn't go with it.
        UserError: an unknown precision, or a scale for a guidance that has none.
    """
    if precision not in PRECISIONS:
        raise UserError(f"{precision=} is unknown: write {' or '.join(PRECISIONS)}")
    nodes = sampling_nodes(bundle, options)
    with ThreadPoolExecutor(max_workers=1) as aside:
        codec = aside.submit(bundle.codec)
        net = bundle.network("backbone").requires_grad_(False)
    pipeline = TextToImage(
        net=held_in(PRECISIONS[precision], net, bundle),
        process=process_of(bundle),
        codec=codec.result(),
        sampling=sampling_of(nodes["sampler"]),
        guidance=guidance_of(nodes["guidance"]),
        size=bundle.entry("size"),
        weak=weak_network(bundle, nodes["guidance"]),
        precision=PRECISIONS[precision],
    )
    return thrifty(pipeline, bundle)


def process_of(bundle: Bundle) -> Process:
    """The process of a bundle.

    Raises:
        BundleError: its entry describes none.
    """
    try:
        process = construct(bundle.entry("process"))
    except UNBUILDABLE as error:
        raise BundleError(f"bundle {bundle.path}: its process can't be built ({error})") from error
    if not isinstance(process, Process):
        raise BundleError(f"bundle {bundle.path}: its process is a {type(process).__name__}")
    return process


def guidance_of(node: Mapping[str, Any]) -> Guidance:
    """The guidance of a node, of which `weak` names the second network and is nothing of its own.

    Raises:
        UserError: the node builds something else.
    """
    guidance = construct({key: value for key, value in node.items() if key != "weak"})
    if not accepts(guidance, Guidance):
        raise UserError(f"guidance: {node.get('_target_')!r} is no guidance: take one of conf/guidance")
    return guidance


def sampling_of(node: Mapping[str, Any]) -> Sampling:
    """The sampler of a node.

    Raises:
        UserError: the node builds something else.
    """
    sampling = construct(node)
    if not isinstance(sampling, Sampling):
        raise UserError(f"sampler: {node.get('_target_')!r} is no sampler: take one of conf/sampler")
    return sampling


def weak_network(bundle: Bundle, guidance: Mapping[str, Any]) -> nn.Module | None:
    """The network of the bundle that a guidance node names as `weak`; none where it names none.

    Raises:
        BundleError: it can't draw, or noises, encodes or reads prompts in another way than `bundle`.
    """
    if "weak" not in guidance:
        return None
    weak = Bundle.open(weak_path(guidance))
    own, other = fingerprint(bundle), fingerprint(weak)
    different = [name for name in own if own[name] != other[name]]
    if "backbone" not in weak.names or different:
        reason = f"it has another {', '.join(different)}" if different else "it has no denoiser"
        raise BundleError(
            f"guidance.weak={weak.path} doesn't go with bundle {bundle.path}: {reason}; take an early state"
            " of the same run, or a bundle trained on the same autoencoder and text encoder"
        )
    return weak.network("backbone").requires_grad_(False)


def weak_path(guidance: Mapping[str, Any]) -> str:
    """The weak bundle that a guidance node names.

    Raises:
        UserError: none is named.
    """
    if guidance["weak"] is None:
        raise UserError("guidance.weak is missing: name the weak bundle with guidance.weak=<bundle>")
    return str(guidance["weak"])


def identified(guidance: Mapping[str, Any]) -> Mapping[str, Any]:
    """A guidance node with the sha256 of its weak bundle, if it has one, in place of the path."""
    if "weak" not in guidance:
        return guidance
    return {**guidance, "weak": Bundle.open(weak_path(guidance)).sha256}


def fingerprint(bundle: Bundle) -> dict[str, Any]:
    """All but its weights that decides what a denoiser is to say: process, codec, size of the pictures."""
    process, parts = bundle.entry("process"), bundle.config["parts"]
    return {
        "process": {name: process.get(name) for name in READ_BY_DENOISER},
        "autoencoder": parts.get("autoencoder"),
        "text encoder": parts.get("text_encoder"),
        "tokenizer": bundle.config.get("tokenizer"),
        "scale of latents": bundle.config.get("latents"),
        "size of pictures": bundle.config.get("size"),
    }


def with_scale(guidance: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A guidance's constructor with another scale, also where it lies inside another guidance.

    Raises:
        UserError: a guidance that has no scale.
    """
    if "scale" in guidance:
        return guidance | {"scale": float(scale)}
    if "within" in guidance:
        return {**guidance, "within": with_scale(guidance["within"], scale)}
    raise UserError(f"guidance {guidance['_target_']} has no scale to set to {scale}: choose guidance=cfg")
