"""Agreement of pictures with their text in a CLIP's space: CLIP score and R-precision."""

from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.features import OWN_CLIP
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, Table, blocks, stacked, unit_rows
from ldm.metrics.picture_metric import Observed, PictureMetric, Reference, features_of


class ClipScore(PictureMetric):
    """Mean cosine of pictures and their prompts (after Hessel et al. 2021, without their factor of 2.5).

    Named by the CLIP that judges. One that also conditions the generator flatters it: read the score beside
    the real pictures' with the same captions, and never beside another CLIP's.

    Args:
        clip: name of the CLIP; its features are `<clip>_image` and `<clip>_text`.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False

    def __init__(self, *, clip: str) -> None:
        super().__init__()
        self.clip = clip
        judge = "the very CLIP that conditions the model" if clip == OWN_CLIP else "this CLIP"
        self.reading = f"cosine of picture and prompt, judged by {judge}, higher is better"
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def needs(self) -> tuple[str, ...]:
        return (f"{self.clip}_image", f"{self.clip}_text")

    def update(self, batch: Observed, *, real: bool) -> None:
        if real:  # real pictures have many captions; those of the drawn captions come as their own reference
            return
        cosines = pair_cosines(
            features_of(batch, f"{self.clip}_image"), features_of(batch, f"{self.clip}_text")
        )
        self.total = self.total + cosines.sum()
        self.count = self.count + len(cosines)

    def compute(self) -> dict[str, Tensor]:
        if self.count == 0:
            raise UserError("a CLIP score needs at least one picture")
        return {f"{self.clip}_score": self.total / self.count}


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
            raise UserError(f"{candidates=} of R-precision must be at least 2: the own caption and another")
        self.clip, self.candidates = clip, candidates
        self.reading = f"share whose own caption is the nearest among {candidates}, higher is better"
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
        captions = dim_zero_cat(self.captions)
        pair = stacked(self.images), stacked(self.texts)
        found = own_caption_first(*pair, captions, candidates=self.candidates)
        return {f"r_precision_{self.clip}": found.double().mean()}


def pair_cosines(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """Cosine of each picture with its own text, float64, not scaled and not cut at 0."""
    return (F.normalize(images.double(), dim=1) * F.normalize(texts.double(), dim=1)).sum(1)


def own_caption_first(
    images: Rows, texts: Rows, captions: Int[Tensor, "n"], *, candidates: int = 100
) -> Bool[Tensor, "n"]:
    """Whether each picture is nearer to its caption than to random others (Xu et al. 2018, section 4).

    By cosine; a tie counts against the picture. Which others a caption meets depends on the captions alone:
    all pictures of one caption are asked the same question.

    Args:
        texts: features of each picture's own caption.
        captions: its number.
        candidates: the own one and the others together.

    Raises:
        UserError: fewer different captions than candidates.
    """
    numbers, owners = captions.unique(return_inverse=True)
    if len(numbers) < candidates:
        raise UserError(
            f"R-precision among {candidates} captions needs as many different ones, got {len(numbers)}: "
            f"draw more captions or lower candidates"
        )
    first = torch.zeros(len(numbers), dtype=torch.long, device=owners.device)
    first[owners] = torch.arange(len(owners), device=owners.device)
    unit = unit_rows(texts)
    texts = replace(unit, order=unit.order[first.to(unit.order.device)])  # one row a caption
    found = []
    for rows, own in zip(blocks(unit_rows(images)), owners.split(ROWS_AT_ONCE), strict=True):
        asked = torch.stack([_asked(caption, len(numbers), candidates) for caption in own.tolist()])
        cosines = _cosines(rows, texts, asked.to(rows.device))
        found.append((cosines[:, :1] > cosines[:, 1:]).all(1))
    return torch.cat(found)


def _asked(caption: int, count: int, candidates: int) -> Int[Tensor, "c"]:
    """A caption and some of the others, drawn by its place."""
    drawn = torch.randperm(count - 1, generator=torch.Generator().manual_seed(caption))[: candidates - 1]
    return torch.cat([torch.tensor([caption]), drawn + (drawn >= caption)])


def _cosines(pictures: Float[Tensor, "b d"], texts: Table, asked: Int[Tensor, "b c"]) -> Float[Tensor, "b c"]:
    """Cosines of pictures with the texts that each is asked about, a block of texts at a time."""
    found = pictures.new_empty(asked.shape)
    starts = range(0, len(texts), ROWS_AT_ONCE)
    for start, block in zip(starts, blocks(texts), strict=True):
        places = asked - start
        here = (places >= 0) & (places < len(block))
        values = (pictures @ block.T).gather(1, places.clamp(0, len(block) - 1))
        found = torch.where(here, values, found)
    return found
