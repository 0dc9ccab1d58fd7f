"""Systems on codes of pictures: what their generators share, and how their bundles are opened and written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from ldm import UserError
from ldm.checkpoints.bundle import Bundle, BundleError, Part
from ldm.checkpoints.bundle_writer import origin, write_bundle
from ldm.codec import PictureCodes
from ldm.construct import check_arguments
from ldm.generators.generator import Source, check_options
from ldm.generators.token_loop import Choice
from ldm.models.picture_tokenizers import PictureTokenizer

PART = "image_tokenizer"  # what bundles call a tokenizer of pictures


def open_codes(bundle: Bundle) -> PictureCodes:
    """The tokenizer of a bundle; BundleError without one, UserError for another kind of network."""
    net = bundle.network(PART)
    if not isinstance(net, PictureTokenizer):
        raise UserError(f"bundle {bundle.path}: its {PART} is a {type(net).__name__}, which makes no codes")
    return PictureCodes(net)


def load_codes(*, image_tokenizer: str) -> PictureCodes:
    """The tokenizer of the bundle at a path; raises as `open_codes` does."""
    return open_codes(Bundle.open(image_tokenizer))


def open_tokenizer(bundle: Bundle) -> "RoundTripOnly":
    """The tokenizer of a bundle as far as evaluation can measure it; raises as `open_codes` does."""
    codes = open_codes(bundle)
    return RoundTripOnly(net=codes.net, codes=codes, path=str(bundle.path))


@dataclass(frozen=True, kw_only=True)
class OnCodes:
    """The base class of generators whose pictures are decoded from codes by a tokenizer."""

    OPTIONS: ClassVar[tuple[str, ...]] = ()
    MOVED: ClassVar[tuple[str, ...]] = ("net", "codes")  # fields with networks

    net: Any  # the network that was trained
    codes: PictureCodes

    @classmethod
    def made(cls, parts: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
        """A generator of these parts, and options that anybody may have written.

        Raises UserError for an option that is not among `OPTIONS`, or a value of another type.
        """
        check_options(options, cls.OPTIONS)
        check_arguments(f"{cls.__module__}.{cls.__name__}", cls, options, is_partial=True)
        return cls(**parts, **options)

    def settings(self) -> dict[str, Any]:
        """The options; those that are None or empty are off."""
        own = {name: getattr(self, name) for name in self.OPTIONS}
        return {name: value for name, value in own.items() if value not in (None, "")}

    def with_options(self, **changes: Any) -> Any:
        """The same networks with some of `OPTIONS` changed; UserError as of `made`."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        return self.made({name: value for name, value in own.items() if name not in changes}, changes)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.codes.device

    def to(self, device: torch.device | str) -> Any:
        """Moves the networks in place; returns self."""
        for name in self.MOVED:
            getattr(self, name).to(device)
        return self

    @property
    def size(self) -> int:
        """Side of a picture in pixels."""
        return self.codes.net.size

    @property
    def num_parameters(self) -> int:
        """Of the trained network."""
        return sum(parameter.numel() for parameter in self.net.parameters())

    def reconstruct(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures through their codes and back."""
        return self.codes.reconstruct(images)


@dataclass(frozen=True, kw_only=True)
class CodeByCode(OnCodes):
    """A generator that samples one code after the other; its options are those of `Choice`."""

    temperature: float | int = 1.0
    top_k: int = 0
    top_p: float | int = 1.0
    scale: float | int = 1.0  # of guidance; 1: none

    def choice(self, *, scale: float | int | None = None) -> Choice:
        """How codes are chosen, by default at its own guidance scale; UserError for wrong options."""
        temperature, top_p, own = float(self.temperature), float(self.top_p), float(self.scale)
        scale = own if scale is None else float(scale)
        return Choice(temperature=temperature, top_k=self.top_k, top_p=top_p, scale=scale)


@dataclass(frozen=True, kw_only=True)
class RoundTripOnly(OnCodes):
    """A `Generator` that generates nothing, for its reconstructions."""

    path: str
    tokenizer: None = None
    nfe: None = None
    starts_from_pictures: bool = False

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], *, source: Source | None = None, **_: Any
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Raises UserError."""
        raise UserError(
            f"bundle {self.path} is a tokenizer of pictures, which generates none: protocol=round_trip of"
            " ldm.evaluate measures it, and a system that was trained on its codes generates"
        )


def check_codes(option: str, value: int, there: int) -> None:
    """Raises UserError for an option that is not what the tokenizer of pictures has."""
    if value != there:
        raise UserError(
            f"{option}={value}, but the tokenizer of pictures has {there}: set it to that, or take another"
            " codes.image_tokenizer"
        )


def open_network(bundle: Bundle, kind: type[nn.Module]) -> dict[str, Any]:
    """The network and the tokenizer of pictures of a bundle, as a generator takes them.

    Raises BundleError where one is missing, of another kind, or the tokenizer is not the one of the training.
    """
    codes, net = open_codes(bundle), bundle.network("backbone").requires_grad_(False)
    if not isinstance(net, kind):
        raise BundleError(f"bundle {bundle.path}: its backbone is no {kind.__name__}: take another bundle")
    # weights of others come without the hash
    if bundle.config.get("codes", codes.sha256) != codes.sha256:
        raise BundleError(
            f"bundle {bundle.path}: its {PART} is not the one that its backbone was trained with"
        )
    return {"net": net, "codes": codes}


def write_parts(
    path: Any, backbone: Part, *, config: Mapping[str, Any], codes: PictureCodes, settings: Mapping[str, Any]
) -> Any:
    """Writes the bundle of such a training: the frozen parts as they came from the bundles of its config.

    Settings are the entry `generator`, and others of the system. NameTaken where `path` is there already.
    """
    pictures, texts = (
        Bundle.open(config["codes"]["image_tokenizer"]),
        Bundle.open(config["codec"]["text_encoder"]),
    )
    # the image encoder generates nothing; evaluation judges pictures by it
    kept = [name for name in ("text_encoder", "image_encoder") if name in texts.names]
    return write_bundle(
        path,
        parts={"backbone": backbone, PART: pictures.part(PART), **{name: texts.part(name) for name in kept}},
        tokenizer=texts.tokenizer(),
        settings={
            "size": codes.net.size,
            "codes": codes.sha256,
            **settings,
            "origin": origin(config),
            "codec_origin": {PART: pictures.entry("origin"), "text_encoder": texts.entry("origin")},
        },
    )
