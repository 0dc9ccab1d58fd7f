"""Opening a bundle of latent diffusion: codec and denoiser, and the sampler and guidance of its options."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import torch
from torch import nn

from ldm import UserError
from ldm.checkpoints.bundle import UNBUILDABLE, Bundle, BundleError
from ldm.codec import Codec
from ldm.construct import construct
from ldm.diffusion.process import READ_BY_DENOISER, Process
from ldm.generators.generator import LATENT_DIFFUSION, check_options, target_of
from ldm.generators.latent_diffusion import (
    OPTIONS,
    TextToImage,
    built_option,
    changed_guidance,
    changed_sampler,
)
from ldm.io.fields import Fields
from ldm.models.vae import AutoencoderKL
from ldm.randomness.noise import SeededNoise, noise_of

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def open_latent_diffusion(bundle: Bundle, **options: Any) -> TextToImage:
    """The generator of a bundle.

    Options are those of `sampling_nodes`; `precision` of the denoiser's matrix products, float32 or bfloat16;
    `negative`, the prompt that guidance moves away from; `generator` of noise, see `noise_of`.

    Raises BundleError for a bundle without a denoiser, or a weak one that doesn't go with it. Raises
    UserError for an unknown option or precision, or a scale for a guidance that has none.
    """
    check_options(options, (*OPTIONS, "precision"), of=f"the generator of {bundle.path}")
    precision = options.get("precision", "float32")
    if precision not in PRECISIONS:
        raise UserError(f"{precision=} is unknown: write {' or '.join(PRECISIONS)}")
    nodes = sampling_nodes(bundle, options)
    weak = weak_bundle(bundle, nodes["guidance"])
    guidance = {key: value for key, value in nodes["guidance"].items() if key != "weak"}  # is no argument
    # before the networks: what is refused here has not waited for gigabytes to be read
    small: dict[str, Any] = {
        "process": process_of(bundle),
        "sampling": built_option("sampler", nodes["sampler"]),
        "guidance": built_option("guidance", guidance),
        "noise": noise_of(options["generator"]) if "generator" in options else SeededNoise,
        "size": bundle.entry("size"),
        "negative": options.get("negative", ""),
        "precision": PRECISIONS[precision],
    }
    # two threads: hashing and reading the files take most of the time, and neither holds Python's lock
    with ThreadPoolExecutor(max_workers=1) as aside:
        codec = aside.submit(codec_of, bundle, bundle)
        net = bundle.network("backbone").requires_grad_(False)
    return TextToImage(
        net=held_in(PRECISIONS[precision], net),
        codec=codec.result(),
        weak=None if weak is None else weak.network("backbone").requires_grad_(False),
        weak_bundle=None if weak is None else {"path": str(weak.path), "sha256": weak.sha256},
        **small,
    )


def load_codec(*, autoencoder: str, text_encoder: str) -> Codec:
    """Codec from one bundle or two: autoencoder of the first, text encoder and tokenizer of the second."""
    return codec_of(Bundle.open(autoencoder), Bundle.open(text_encoder))


def codec_of(pictures: Bundle, texts: Bundle) -> Codec:
    """Codec from the autoencoder of one bundle and the text encoder and tokenizer of another.

    Raises BundleError where a part is missing or damaged, or the latent statistics don't fit the autoencoder.
    """
    if (latents := pictures.config.get("latents")) is None:
        raise BundleError(f"bundle {pictures.path} has no latent statistics: it holds no trained autoencoder")
    # what they must offer is known once they are used: a user's own networks may be of other classes
    net = cast(AutoencoderKL, pictures.network("autoencoder"))
    text_encoder, tokenizer = texts.texts()
    if not len(latents["shift"]) == len(latents["scale"]) == net.latent_channels:
        raise BundleError(f"{pictures.path}: its latent statistics are not of {net.latent_channels} channels")
    return Codec(
        autoencoder=net,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        latent_shift=torch.tensor(latents["shift"]),
        latent_scale=torch.tensor(latents["scale"]),
    )


def sampling_nodes(bundle: Bundle, options: Mapping[str, Any]) -> dict[str, Any]:
    """The config nodes `sampler` and `guidance` to sample with: a command's, or the bundle's with changes.

    Options are `sampler` and `guidance`, and `grid`, `steps`, `scale` that change whichever is used, or None.

    Raises BundleError for a bundle of another system, or without a denoiser. Raises UserError for a scale for
    a guidance that has none, or a node that is no mapping.
    """
    if target_of(bundle) != LATENT_DIFFUSION:
        raise BundleError(
            f"bundle {bundle.path} holds no latent diffusion but what {target_of(bundle)} opens: it has no"
            " sampler and no guidance, and can't be written in the formats of other libraries"
        )
    if "backbone" not in bundle.names:
        held = ", ".join(bundle.names)
        raise BundleError(f"bundle {bundle.path} can't generate: it has no denoiser, only {held}")
    # checked, since options come from the records of pictures too, which anybody may have written
    given = Fields("options", {name: value for name, value in options.items() if value is not None})
    for name in given.values.keys() & {"sampler", "grid", "guidance"}:
        given.mapping(name).text("_target_")
    return {
        "sampler": changed_sampler(bundle.entry("sampler"), given.values),
        "guidance": changed_guidance(bundle.entry("guidance"), given.values),
    }


def process_of(bundle: Bundle, kind: type[Any] = Process) -> Any:
    """The process of a bundle; BundleError where its entry describes none of a kind."""
    node = bundle.entry("process")
    try:
        process = construct(node)
    except UNBUILDABLE as error:
        raise BundleError(f"bundle {bundle.path}: its process can't be built ({error})") from error
    if not isinstance(process, kind):
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

    Raises UserError where `weak` is empty, or the bundle at its path has another sha256. Raises BundleError
    where it holds no denoiser, or noises, encodes or reads prompts in another way than `bundle`.
    """
    if "weak" not in guidance:
        return None
    named = guidance["weak"] if isinstance(guidance["weak"], Mapping) else {"path": guidance["weak"]}
    if named.get("path") is None:
        raise UserError("guidance.weak is missing: name the weak bundle with guidance.weak=<bundle>")
    weak = Bundle.open(str(named["path"]))
    # a record names its weak bundle by content: another one at that path would give other pictures
    if named.get("sha256", weak.sha256) != weak.sha256:
        raise UserError(f"guidance.weak={weak.path} is another bundle than it was: name that one")
    # compared before its network is read, which takes seconds
    own, other = fingerprint(bundle), fingerprint(weak)
    different = [name for name in own if own[name] != other[name]]
    if "backbone" not in weak.names or different:
        reason = f"it has another {', '.join(different)}" if different else "it has no denoiser"
        raise BundleError(
            f"guidance.weak={weak.path} doesn't go with bundle {bundle.path}: {reason}; take an early"
            " checkpoint of the same run, or a bundle trained on the same autoencoder and text encoder"
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
