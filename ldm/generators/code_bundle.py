"""Opening tokenizers of pictures: for a training on their codes, and to measure their round trip."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.generators.generator import Source, check_options
from ldm.picture_codes import PictureCodes


def load_codes(*, image_tokenizer: str) -> PictureCodes:
    """The tokenizer of the bundle at a path; raises as `PictureCodes.open` does."""
    return PictureCodes.open(Bundle.open(image_tokenizer))


def open_tokenizer(bundle: Bundle) -> "RoundTripOnly":
    """The tokenizer of a bundle as far as evaluation can measure it; raises as `PictureCodes.open` does."""
    codes = PictureCodes.open(bundle)
    return RoundTripOnly(net=codes.net, codes=codes, path=str(bundle.path))


@dataclass(frozen=True, kw_only=True)
class OnCodes:
    """What all generators have whose pictures a tokenizer decodes from codes."""

    net: Any  # the network that was trained
    codes: PictureCodes

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

    def to(self, device: torch.device | str) -> "RoundTripOnly":
        """Moves the network in place; returns self."""
        self.codes.to(device)
        return self

    def settings(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def with_options(self, **changes: Any) -> "RoundTripOnly":
        """The same; raises UserError for any option."""
        check_options(changes, ())
        return self
