"""Latent diffusion as a generator: a denoiser turns prompts and seeds into latents, a codec decodes them."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from ldm import UserError
from ldm.codec import Codec
from ldm.construct import accepts, construct
from ldm.diffusion import Denoiser, Guidance, Times
from ldm.diffusion.grids import from_strength
from ldm.diffusion.guidance import apart, batched, keeping
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import Sampling
from ldm.diffusion.schedules import noised
from ldm.generators.generator import Progress, Source, Watch, check_options
from ldm.randomness.noise import SeededNoise, noise_of
from ldm.tokenizers import Tokenizer

OPTIONS = ("sampler", "grid", "steps", "guidance", "scale", "negative", "generator")


@dataclass(frozen=True, kw_only=True)
class TextToImage:
    """A denoiser with everything that generating pictures from it takes.

    Raises UserError for a negative prompt beside a weak network, which leaves it no place, and for options
    that its guidance can't have.
    """

    starts_from_pictures: ClassVar = True  # a source picture is encoded and noised

    net: nn.Module  # the trained network
    process: Process  # how its output is read
    codec: Codec  # prompts to context, latents to pictures
    sampling: Sampling  # method, grid and number of steps
    guidance: Guidance  # how the conditional and the unconditional denoiser are joined
    size: int  # side of a picture in pixels
    negative: str = ""  # prompt of the unconditional denoiser; training drops captions to the empty one
    # a worse network that, given the prompt, takes the unconditional denoiser's place: autoguidance
    weak: nn.Module | None = None
    weak_bundle: Mapping[str, str] | None = None  # path and sha256 of the bundle that it is from
    precision: torch.dtype = torch.float32  # of the network's matrix products
    noise: type[SeededNoise] = SeededNoise  # noise of seeds; the earlier one reproduces older pictures
    preview: Callable[[Tensor], Tensor] | None = None  # scaled latents to pictures; None: the decoder

    def __post_init__(self) -> None:
        if self.weak is not None and self.negative:
            raise UserError(
                f"negative={self.negative!r} has no place beside a weak network: leave one of them out"
            )
        # A guidance checks its options when it gets denoisers: here, before a command writes anything.
        self.guidance(_unasked, apart(_unasked, _unasked))
        is_internal = "ldm.diffusion.internal." in str(node_of(self.guidance))  # also inside another one
        if is_internal and getattr(self.net, "early_head", None) is None:
            raise UserError("guidance=internal needs a network with an early head, trained by +term=internal")

    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> UInt8[Tensor, "b 3 h w"]:
        """One picture for each prompt and seed, from noise alone or from the pictures of a source.

        Each seed has a stream of noise of its own, so a picture depends on its prompt and seed, and on its
        batch only by rounding: kernels sum in an order that the size of a batch decides, which may change a
        value of a picture by 1 of 255 here and there.

        `watch` receives each call of the guided denoiser, so that a step takes the same time with every
        method: Heun's calls it twice between two timesteps, all but a few others once.

        Raises UserError unless there is one seed per prompt, and one picture if there are any; for a seed or
        strength out of range; for a source of another size.
        """
        made = self.codec.decode(self.latents(prompts, seeds, source=source, watch=watch))
        if source is None or source.redrawn is None:
            return made
        # the pixels too: a decoder changes those around a latent, and encoding alone loses details
        return torch.where(source.redrawn.to(made.device), made, source.images.to(made.device))

    @torch.no_grad()
    def latents(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        source: Source | None = None,
        watch: Watch | None = None,
    ) -> Float[Tensor, "b c h w"]:
        """The scaled latents of the pictures."""
        if len(prompts) != len(seeds):
            raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one seed a picture")
        noise = self.noise(seeds, self.codec.latent_shape(self.size), device=self.codec.device)
        schedule, device = self.process.schedule, self.codec.device.type
        x, times = noise.generate(), self.sampling.times(schedule)
        if source is not None:
            source.check(count=len(prompts), size=self.size)
            known = self.codec.encode_images(source.images).mean
            # the rest of the same grid: fewer steps, not smaller ones
            times = from_strength(times, source.strength)
            x = noised(known, x, times[0], schedule)
        with torch.autocast(device, dtype=self.precision, enabled=self.precision != torch.float32):
            denoise = self._denoiser(prompts)
            if source is not None and source.redrawn is not None:
                denoise = keeping(denoise, known, self._touched(source.redrawn).expand_as(known))
            if watch is not None:
                denoise = self._reported(denoise, watch, steps=self._calls(lambda each: each, times))
            return self.sampling(denoise, schedule, x, noise=noise, times=times)

    def _denoiser(self, prompts: Sequence[str]) -> Denoiser:
        """The guided denoiser of some prompts, which the sampler calls."""
        context = self.codec.encode_prompts(prompts)
        cond = self.process.denoiser(self.net, context)
        if self.weak is not None:
            return self.guidance(cond, apart(cond, self.process.denoiser(self.weak, context)))
        nothing = self.codec.encode_prompts([self.negative] * len(prompts))
        both = self.process.denoiser(self.net, torch.cat([context, nothing]))
        return self.guidance(cond, batched(both))

    def _reported(self, denoise: Denoiser, watch: Watch, *, steps: int) -> Denoiser:
        """A denoiser whose calls are reported, each with the pictures that it expects."""
        count, preview = itertools.count(1), self.preview or self.codec.decode

        def reported(x: Tensor, t: Tensor) -> Tensor:
            x0 = denoise(x, t)
            watch(Progress(next(count), steps, partial(preview, x0)))
            return x0

        return reported

    def _calls(self, around: Callable[[Denoiser], Denoiser], times: Times | None = None) -> int:
        """Counts the denoiser's calls in one sampling run; `around` wraps the denoiser, as guidance does.

        It samples four numbers, since no formula knows how often a sampler or a guidance calls its denoiser.
        """
        count = 0

        def denoise(x: Tensor, t: Tensor, **_: object) -> Tensor:
            """Zeros; counts the call."""
            nonlocal count
            count += 1
            return torch.zeros_like(x)

        x, schedule = torch.zeros(1, 1, 2, 2), self.process.schedule
        self.sampling(around(denoise), schedule, x, noise=torch.zeros_like, times=times)
        return count

    def _touched(self, redrawn: Bool[Tensor, "b 1 H W"]) -> Bool[Tensor, "b 1 h w"]:
        """The latents of which at least one pixel is redrawn."""
        pixels = redrawn.to(self.codec.device, torch.float32)  # pooling knows no bool
        return F.max_pool2d(pixels, self.codec.autoencoder.factor) > 0

    @property
    def tokenizer(self) -> Tokenizer:
        """The codec's."""
        return self.codec.tokenizer

    @property
    def num_parameters(self) -> int:
        """Parameters of the denoiser."""
        return sum(parameter.numel() for parameter in self.net.parameters())

    @property
    def nfe(self) -> int:
        """Network evaluations for a picture, both of guidance's counted."""
        return self._calls(lambda denoise: self.guidance(denoise, apart(denoise, denoise)))

    def reconstruct(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures through the autoencoder and back, by the posterior's mean."""
        return self.codec.decode(self.codec.encode_images(images).mean)

    def to(self, device: torch.device | str) -> "TextToImage":
        """Moves the networks (in place, as modules do); returns self."""
        for part in (self.net, self.weak, self.codec):
            if part is not None:
                part.to(device)
        return self

    def settings(self) -> dict[str, Any]:
        """Sampler and guidance as config nodes, precision, generator of noise, a negative prompt if any."""
        guidance = node_of(self.guidance)
        if self.weak_bundle is not None:
            guidance |= {"weak": dict(self.weak_bundle)}
        return {
            "sampler": node_of(self.sampling),
            "guidance": guidance,
            "precision": str(self.precision).removeprefix("torch."),
            "generator": self.noise.name,
            **({"negative": self.negative} if self.negative else {}),
        }

    def with_options(self, **changes: Any) -> "TextToImage":
        """The same networks, a weak one among them, with some of `OPTIONS` changed.

        `sampler`, `grid` and `guidance` are config nodes, `generator` is a name of `noise_of`.

        Raises UserError for an option that is unknown or of another kind, or a scale that a guidance lacks.
        """
        check_options(changes, OPTIONS)
        options: dict[str, Any] = {}
        if changes.keys() & {"sampler", "grid", "steps"}:
            options["sampling"] = built_option("sampler", changed_sampler(node_of(self.sampling), changes))
        if changes.keys() & {"guidance", "scale"}:
            options["guidance"] = built_option("guidance", changed_guidance(node_of(self.guidance), changes))
        if "negative" in changes:
            options["negative"] = changes["negative"]
        if "generator" in changes:
            options["noise"] = noise_of(changes["generator"])
        return replace(self, **options)  # a new object, which checks its options as the first one did


def built_option(name: str, node: Mapping[str, Any]) -> Any:
    """The sampler or guidance that a config node builds; UserError where it builds something else."""
    built = construct(node)
    if not (isinstance(built, Sampling) if name == "sampler" else accepts(built, Guidance)):
        raise UserError(f"{name}: {node.get('_target_')!r} is no {name}: take one of conf/{name}")
    return built


def _unasked(x: Tensor, t: Tensor) -> Tensor:
    """A denoiser to make a guidance with that is never called."""
    raise AssertionError


def changed_sampler(node: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's config node with the `sampler`, `grid` and `steps` that options ask for, if any."""
    changes = {name: options[name] for name in ("grid", "steps") if options.get(name) is not None}
    return {**(options.get("sampler") or node), **changes}


def changed_guidance(node: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """A guidance's config node with the `guidance` and `scale` that options ask for, if any.

    Raises UserError for a guidance that has no scale.
    """
    chosen = dict(options.get("guidance") or node)
    return chosen if options.get("scale") is None else with_scale(chosen, options["scale"])


def with_scale(guidance: Mapping[str, Any], scale: object) -> dict[str, Any]:
    """A guidance's constructor with another scale, also where it lies inside another guidance.

    Raises UserError for a guidance that has no scale, or a scale that is no finite number.
    """
    if not isinstance(scale, int | float) or not math.isfinite(scale):
        raise UserError(f"{scale=} must be a finite number")
    if "scale" in guidance:
        return {**guidance, "scale": float(scale)}
    if "within" in guidance:
        return {**guidance, "within": with_scale(guidance["within"], scale)}
    raise UserError(f"guidance {guidance['_target_']} has no scale to set to {scale}: choose guidance=cfg")


def node_of(built: Any) -> Any:
    """The config node that `construct` would build a sampler or a guidance from.

    It is read off the object, so that it can't be out of date: the fields of a dataclass, or what a
    `functools.partial` has bound.
    """
    if isinstance(built, partial):
        bound = {name: node_of(value) for name, value in built.keywords.items()}
        return {"_target_": _name(built.func), "_partial_": True, **bound}
    if is_dataclass(built) and not isinstance(built, type):
        own = {each.name: node_of(getattr(built, each.name)) for each in fields(built)}
        return {"_target_": _name(type(built)), **own}
    return {"_target_": _name(built), "_partial_": True} if callable(built) else built


def _name(target: Any) -> str:
    return f"{target.__module__}.{target.__qualname__}"
