"""A frozen tokenizer of pictures: 8-bit pictures to rows of codes and back."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Protocol

from jaxtyping import Int64, UInt8
from torch import Tensor, nn

from ldm import NotFinite, UserError
from ldm.codec import Frozen, hash_of, to_float, to_uint8
from ldm.models.picture_tokenizers import PictureTokenizer

PART = "image_tokenizer"  # what bundles call it


class Networks(Protocol):
    """The part of a `Bundle` that opening a tokenizer uses."""

    @property
    def path(self) -> Path:
        """Where it lies."""

    def network(self, name: str) -> nn.Module:
        """One of its networks, built and loaded."""


@dataclass(frozen=True)
class PictureCodes(Frozen):
    """A frozen tokenizer with its identity.

    A picture gets the same codes, and a row of codes the same picture, whatever else is in their batch.
    """

    NETWORKS: ClassVar = ("net",)

    net: PictureTokenizer

    @classmethod
    def open(cls, bundle: Networks) -> "PictureCodes":
        """The tokenizer of a bundle; BundleError without one, UserError for another kind of network."""
        net = bundle.network(PART)
        if not isinstance(net, PictureTokenizer):
            raise UserError(
                f"bundle {bundle.path}: its {PART} is a {type(net).__name__}, which makes no codes"
            )
        return cls(net)

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that decides codes and pictures."""
        sizes = repr((self.net.size, self.net.levels))
        return hash_of(self.net.state_dict(), type(self.net).__name__, sizes)

    def encode_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Int64[Tensor, "b n"]:
        """The codes of each picture, one row: see `PictureTokenizer`."""
        return self.in_chunks(lambda chunk: self.net.encode(to_float(chunk)), images)

    def decode(self, codes: Int64[Tensor, "b n"]) -> UInt8[Tensor, "b 3 h w"]:
        """The pictures of rows of codes.

        Raises UserError for codes that are not the tokenizer's, NotFinite for pictures that are NaN or
        infinite.
        """
        self.net.split(codes)  # refuses wrong ones before they are sent to a device

        def render(chunk: Tensor) -> Tensor:
            pictures = self.net.decode(chunk)
            if not pictures.isfinite().all():
                raise NotFinite("the pictures are NaN or infinite: take another bundle of the tokenizer")
            return to_uint8(pictures)

        return self.in_chunks(render, codes)

    def reconstruct(self, images: UInt8[Tensor, "b 3 h w"]) -> UInt8[Tensor, "b 3 h w"]:
        """Pictures through their codes and back."""
        return self.decode(self.encode_images(images))
