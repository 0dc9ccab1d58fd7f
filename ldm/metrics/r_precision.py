"""R-precision: is a picture's own caption the nearest among many?"""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of


def own_caption_first(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "n d"],
    captions: Int[Tensor, "n"],
    *,
    candidates: int = 100,
) -> Bool[Tensor, "n"]:
    """Whether each picture is nearer to its caption than to random others (Xu et al. 2018, section 4).

    By cosine; a tie counts against the picture. Which others a caption meets depends on the captions alone:
    all pictures of one caption are asked the same question.

    Args:
        texts: features of each picture's own caption.
        captions: its number.
        candidates: the own one and the others together.

    Raises:
        ValueError: fewer different captions than candidates.
    """
    numbers, owners = captions.unique(return_inverse=True)
    if len(numbers) < candidates:
        raise ValueError(
            f"R-precision among {candidates} captions needs as many different ones, got {len(numbers)}: "
            f"draw more captions or lower candidates"
        )
    first = torch.zeros(len(numbers), dtype=torch.long, device=owners.device)
    first[owners] = torch.arange(len(owners), device=owners.device)
    texts = F.normalize(texts.double(), dim=1)[first]  # one row a caption
    cosines = F.normalize(images.double(), dim=1) @ texts.T
    own = cosines.gather(1, owners[:, None])
    others = torch.stack([_others(k, len(numbers), candidates - 1) for k in range(len(numbers))]).to(
        owners.device
    )
    return (own > cosines.gather(1, others[owners])).all(1)


def _others(caption: int, count: int, wanted: int) -> Int[Tensor, "k"]:
    """Some of the other captions, drawn by the caption's place."""
    drawn = torch.randperm(count - 1, generator=torch.Generator().manual_seed(caption))[:wanted]
    return drawn + (drawn >= caption)


class RPrecision(PictureMetric):
    """Share of pictures whose own caption comes first among 100: `r_precision_<clip>`.

    Args:
        clip: name of the CLIP that judges; its features are `<clip>_image` and `<clip>_text`.
        candidates: captions that each picture is held against, its own included.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False

    def __init__(self, *, clip: str, candidates: int = 100) -> None:
        super().__init__()
        if candidates < 2:
            raise ValueError(f"{candidates=} of R-precision must be at least 2: the own caption and another")
        self.clip, self.candidates = clip, candidates
        for name in ("images", "texts", "captions"):
            self.add_state(name, [], dist_reduce_fx="cat")

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.clip}_image", f"{self.clip}_text")

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            self.images.append(features_of(batch, f"{self.clip}_image"))
            self.texts.append(features_of(batch, f"{self.clip}_text"))
            self.captions.append(batch.captions)

    def compute(self) -> dict[str, Tensor]:
        parts = (dim_zero_cat(part) for part in (self.images, self.texts, self.captions))
        return {
            f"r_precision_{self.clip}": own_caption_first(*parts, candidates=self.candidates).double().mean()
        }
