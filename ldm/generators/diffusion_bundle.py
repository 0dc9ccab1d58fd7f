"""Bundles of latent diffusion: a denoiser with the codec that it was trained beside, written and opened."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import UNBUILDABLE, Bundle, BundleError, Part, write_bundle
from ldm.construct import accepts, construct
from ldm.diffusion import Guidance
from ldm.diffusion.process import READ_BY_DENOISER, Process
from ldm.diffusion.samplers import Sampling
from ldm.generators.generator import check_options
from ldm.generators.latent_diffusion import OPTIONS, TextToImage, changed_guidance, changed_sampler
from ldm.generators.opening import LATENT_DIFFUSION, target_of
from ldm.io.fields import Fields
from ldm.randomness.noise import SeededNoise, noise_of

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
WAYS = ("process", "sampler", "guidance")


def open_latent_diffusion(bundle: Bundle, **options: Any) -> TextToImage:
    """The generator of a bundle.

    Args:
        options: `sampler`, `grid`, `steps`, `guidance` and `scale`, as in `sampling_nodes`; `precision` of
            the denoiser's matrix products, float32 or bfloat16; `negative`, the prompt that guidance moves
            away from; `generator` of noise, see `noise_of`.

    Raises:
        BundleError: a bundle without a denoiser, or a weak one that doesn't go with it.
        UserError: an unknown option or precision, or a scale for a guidance that has none.
    """
    check_options(options, (*OPTIONS, "precision"), of=f"the generator of {bundle.path}")
    precision = options.get("precision", "float32")
    if precision not in PRECISIONS:
        raise UserError(f"{precision=} is unknown: write {' or '.join(PRECISIONS)}")
    nodes = sampling_nodes(bundle, options)
    weak = weak_bundle(bundle, nodes["guidance"])
    with ThreadPoolExecutor(max_workers=1) as aside:
        codec = aside.submit(bundle.codec)
        net = bundle.network("backbone").requires_grad_(False)
    return TextToImage(
        net=held_in(PRECISIONS[precision], net),
        process=process_of(bundle),
        codec=codec.result(),
        sampling=sampling_of(nodes["sampler"]),
        guidance=guidance_of(nodes["guidance"]),
        size=bundle.entry("size"),
        negative=options.get("negative", ""),
        weak=None if weak is None else weak.network("backbone").requires_grad_(False),
        weak_bundle=None if weak is None else {"path": str(weak.path), "sha256": weak.sha256},
        precision=PRECISIONS[precision],
        noise=noise_of(options["generator"]) if "generator" in options else SeededNoise,
    )


def sampling_nodes(bundle: Bundle, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config nodes `sampler` and `guidance` to sample with: a command's, or the bundle's with changes.

    Args:
        options: may hold `sampler` and `guidance`, and `grid`, `steps`, `scale` that change whichever is
            used; what is None is as if it were not there.

    Raises:
        BundleError: a bundle of another system, or without a denoiser.
        UserError: a scale for a guidance that has none, or a node that is no mapping.
    """
    if target_of(bundle) != LATENT_DIFFUSION:
        raise BundleError(
            f"bundle {bundle.path} holds no latent diffusion but what {target_of(bundle)} opens: it has no"
            " sampler and no guidance, and can't be written in the formats of other libraries"
        )
    if "backbone" not in bundle.names:
        held = ", ".join(bundle.names)
        raise BundleError(f"bundle {bundle.path} can't draw: it has no denoiser, only {held}")
    given = Fields("options", {name: value for name, value in options.items() if value is not None})
    for name in given.values.keys() & {"sampler", "grid", "guidance"}:
        given.mapping(name).text("_target_")
    return {
        "sampler": changed_sampler(bundle.entry("sampler"), given.values),
        "guidance": changed_guidance(bundle.entry("guidance"), given.values),
    }


def guidance_of(node: Mapping[str, Any]) -> Guidance:
    """The guidance of a node, of which `weak` names the second network and is no argument.

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


def held_in(dtype: torch.dtype, net: nn.Module) -> nn.Module:
    """A denoiser with the weights of its matrix products in the dtype that autocast casts them to.

    Under autocast it computes the same to the bit, without a cast at every call.
    """
    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return net


def weak_bundle(bundle: Bundle, guidance: Mapping[str, Any]) -> Bundle | None:
    """The bundle that a guidance node names as `weak`, a path or {path, sha256}; None where it names none.

    Raises:
        UserError: `weak` is empty, or the bundle at its path has another sha256.
        BundleError: it holds no denoiser, or noises, encodes or reads prompts in another way than `bundle`.
    """
    if "weak" not in guidance:
        return None
    named = guidance["weak"] if isinstance(guidance["weak"], Mapping) else {"path": guidance["weak"]}
    if named.get("path") is None:
        raise UserError("guidance.weak is missing: name the weak bundle with guidance.weak=<bundle>")
    weak = Bundle.open(str(named["path"]))
    if named.get("sha256", weak.sha256) != weak.sha256:
        raise UserError(f"guidance.weak={weak.path} is another bundle now: put back the one it was")
    own, other = fingerprint(bundle), fingerprint(weak)
    different = [name for name in own if own[name] != other[name]]
    if "backbone" not in weak.names or different:
        reason = f"it has another {', '.join(different)}" if different else "it has no denoiser"
        raise BundleError(
            f"guidance.weak={weak.path} doesn't go with bundle {bundle.path}: {reason}; take an early state"
            " of the same run, or a bundle trained on the same autoencoder and text encoder"
        )
    return weak


def fingerprint(bundle: Bundle) -> dict[str, Any]:
    """What decides, beside its weights, what a denoiser predicts: process, codec, size of the pictures."""
    process, parts = bundle.entry("process"), bundle.config["parts"]
    return {
        "process": {name: process.get(name) for name in READ_BY_DENOISER},
        "autoencoder": parts.get("autoencoder"),
        "text encoder": parts.get("text_encoder"),
        "tokenizer": bundle.config.get("tokenizer"),
        "scale of latents": bundle.config.get("latents"),
        "size of pictures": bundle.config.get("size"),
    }


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
        FileExistsError: `path` is there already.
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
