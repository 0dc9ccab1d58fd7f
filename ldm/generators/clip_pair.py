"""A frozen CLIP beside a system on codes: it makes conditions, and ranks candidates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import hash_of, in_chunks, to_float
from ldm.tokenizers import Tokenizer

CHUNK = 8  # texts or pictures that a tower sees at once: a feature does not depend on the others of its batch


@dataclass(frozen=True, kw_only=True)
class ClipPair:
    """Both towers of a CLIP and its tokenizer. Not a module, so that it is in no checkpoint of a stage."""

    text: Any  # `ldm.models.clip.TextTransformer`
    image: Any  # `ldm.models.clip.VisionTransformer`
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        for tower in (self.text, self.image):
            tower.eval().requires_grad_(False)

    @classmethod
    def open(cls, bundle: Bundle) -> "ClipPair":
        """That of a bundle. Raises BundleError where a tower or the tokenizer is missing."""
        text, image = (bundle.network(name) for name in ("text_encoder", "image_encoder"))
        return cls(text=text, image=image, tokenizer=bundle.tokenizer())

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.text.parameters()).device

    @property
    def dim(self) -> int:
        """Length of a feature."""
        return int(self.image.projection.out_features)

    def to(self, device: torch.device | str) -> "ClipPair":
        """Moves the towers in place; returns self."""
        for tower in (self.text, self.image):
            tower.to(device)
        return self

    def image_fingerprint(self) -> str:
        """sha256 of everything that decides the feature of a picture."""
        return hash_of(self.image.state_dict(), repr((self.image.image_size, self.image.pixels)))

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "b e"]:
        """Unit features of texts."""
        tokens = self.tokenizer.encode(texts)
        return self._in_chunks(lambda rows: F.normalize(self.text(rows).pooled, dim=-1), tokens)

    @torch.no_grad()
    def embed_images(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Unit features of pictures of any size."""
        return self._in_chunks(lambda rows: self.features(to_float(rows)), images)

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b e"]:
        """Unit features of pictures in [-1, 1], with their gradient."""
        side = self.image.image_size
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.normalize(self.image(images), dim=-1)

    def _in_chunks(self, compute: Any, rows: Tensor) -> Tensor:
        return in_chunks(compute, rows, size=CHUNK, device=self.device)


def load_clip(*, bundle: str) -> ClipPair:
    """The CLIP of the bundle at a path; raises as `ClipPair.open` does."""
    return ClipPair.open(Bundle.open(bundle))


def check_dim(clip: ClipPair, prefix_dim: int) -> None:
    """Raises UserError for a network that reads features of another length than a CLIP's."""
    if clip.dim != prefix_dim:
        raise UserError(f"backbone.prefix_dim={prefix_dim}, but the features of CLIP have {clip.dim} numbers")
