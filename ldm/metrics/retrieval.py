"""Agreement of pictures with texts and with the right pictures: recall, R-precision, CLIP score."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.features import OWN_CLIP
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, blocks, unit_rows
from ldm.metrics.picture_metric import GatheredFeatures, PromptMetric, Reference


def ranks(
    queries: Rows, gallery: Rows, *, query_keys: Int[Tensor, " q"], gallery_keys: Int[Tensor, " g"]
) -> Int[Tensor, " q"]:
    """How many wrong items stand before each query's best right one, 0 for a hit at once.

    Items are right where their key is the query's. A tie counts against the query, so a network that gives
    every item the same feature finds nothing.

    Raises UserError: a query without a right item in the gallery.
    """
    if (absent := ~torch.isin(query_keys, gallery_keys)).any():
        raise UserError(f"{int(absent.sum())} of {len(query_keys)} queries have no right item in the gallery")
    found = []
    for rows, keys in zip(blocks(queries), query_keys.split(ROWS_AT_ONCE), strict=True):
        best = torch.full((len(rows), 1), -torch.inf, device=rows.device)
        for cosines, right in _compared(rows, keys, gallery, gallery_keys):
            best = best.maximum(cosines.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True))
        before = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
        for cosines, right in _compared(rows, keys, gallery, gallery_keys):
            before += ((cosines >= best) & ~right).sum(dim=1)
        found.append(before)
    return torch.cat(found)


def _compared(
    queries: Float[Tensor, "b d"], keys: Int[Tensor, "b"], gallery: Rows, gallery_keys: Int[Tensor, " g"]
) -> Iterator[tuple[Float[Tensor, "b c"], Bool[Tensor, "b c"]]]:
    """Cosines of queries with each block of the gallery, and where those are the right items."""
    unit = F.normalize(queries.float(), dim=1)
    for block, theirs in zip(blocks(gallery), gallery_keys.split(ROWS_AT_ONCE), strict=True):
        yield unit @ F.normalize(block.float(), dim=1).T, keys[:, None] == theirs[None, :]


def caption_recall(
    images: Float[Tensor, "i d"],
    texts: Float[Tensor, "t d"],
    owners: Int[Tensor, " t"],
    *,
    ks: Sequence[int] = (1, 5),
) -> dict[str, Float[Tensor, ""]]:
    """Recall both ways where a picture has several captions: `r1_image_to_text`, `r1_text_to_image`, ...

    `owners` gives each text's row among the images. Image to text is right when any caption of the picture is
    among the k nearest (Karpathy & Fei-Fei 2015, section 4.1), and asks only about pictures that have one.
    """
    described = owners.unique()
    numbers = torch.arange(len(images), device=owners.device)
    to_text = ranks(images[described], texts, query_keys=described, gallery_keys=owners)
    to_image = ranks(texts, images, query_keys=owners, gallery_keys=numbers)
    found = {"image_to_text": to_text, "text_to_image": to_image}
    return {f"r{k}_{way}": (rank < k).float().mean() for way, rank in found.items() for k in ks}


class Retrieval(Metric):
    """`caption_recall` over all pairs of a validation, gathered from all ranks."""

    full_state_update = False
    higher_is_better = True

    def __init__(self, *, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__()
        self.ks = tuple(ks)
        for name in ("images", "texts", "keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], keys: Int[Tensor, " b"]
    ) -> None:
        """Adds pairs; pairs of one picture carry one key."""
        self.images.append(images.detach())
        self.texts.append(texts.detach())
        self.keys.append(keys)

    def compute(self) -> dict[str, Tensor]:
        """Recall both ways over all distinct pairs."""
        images, texts, keys = (dim_zero_cat(rows) for rows in (self.images, self.texts, self.keys))
        # ranks that each saw the whole set bring every pair again: once is enough
        once = _first_of_each(torch.cat([keys[:, None].double(), texts.double()], dim=1))
        images, texts, keys = images[once], texts[once], keys[once]
        owners = keys.unique(return_inverse=True)[1]
        return caption_recall(images[_first_of_each(keys[:, None])], texts, owners, ks=self.ks)


def _first_of_each(rows: Shaped[Tensor, "n d"]) -> Int[Tensor, " m"]:
    """Where each distinct row stands first, in the order of the sorted rows."""
    inverse = rows.unique(dim=0, return_inverse=True)[1]
    places = torch.arange(len(rows), device=rows.device)
    first = places.new_zeros(int(inverse.max()) + 1)
    return first.scatter_reduce(0, inverse, places, reduce="amin", include_self=False)


class PictureRecall(GatheredFeatures):
    """Share of generated pictures with the right real picture among the k nearest of all: `r<k>_<features>`.

    By cosine of features: does the text decide the picture? Real pictures that show the same thing count as
    wrong, so the score of the right pictures themselves ("real") can lie below 1.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    reading = "share with the right real picture among the k nearest of all, k after the r; higher is better"
    higher_is_better = True

    def __init__(self, *, features: str, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__(features=features)
        self.ks = tuple(ks)

    def compute(self) -> dict[str, Tensor]:
        """One share for each k."""
        made, real = self.side("generated"), self.side("real")
        found = ranks(made.features, real.features, query_keys=made.rows, gallery_keys=real.rows)
        names = {f"r{k}_{self.features}": k for k in self.ks}
        return {name: self.mean(name, found < k, made.captions) for name, k in names.items()}


class ClipScore(PromptMetric):
    """Mean cosine of pictures and their prompts (after Hessel et al. 2021, without their factor of 2.5).

    Named by the CLIP that judges. One that also conditions the generator flatters it: read the score beside
    the real pictures' with the same captions, and never beside another CLIP's.
    """

    def __init__(self, *, clip: str) -> None:
        super().__init__(pictures=f"{clip}_image", prompts=f"{clip}_text")
        self.clip = clip
        judge = "the very CLIP that conditions the model" if clip == OWN_CLIP else "this CLIP"
        self.reading = f"cosine of picture and prompt, judged by {judge}, higher is better"

    def compute(self) -> dict[str, Tensor]:
        """The mean."""
        pictures, prompts, captions = self.pairs()
        cosines = torch.cat([*map(pair_cosines, blocks(pictures), blocks(prompts))])
        name = f"{self.clip}_score"
        return {name: self.mean(name, cosines, captions.to(cosines.device))}


def pair_cosines(images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> Float[Tensor, "b"]:
    """Cosine of each picture with its own text, float64, not scaled and not cut at 0."""
    return (F.normalize(images.double(), dim=1) * F.normalize(texts.double(), dim=1)).sum(1)


class RPrecision(PromptMetric):
    """Share of pictures whose own caption comes first among some `candidates`: `r_precision_<clip>`."""

    def __init__(self, *, clip: str, candidates: int = 100) -> None:
        super().__init__(pictures=f"{clip}_image", prompts=f"{clip}_text")
        if candidates < 2:
            raise UserError(f"{candidates=} of R-precision must be at least 2: the own caption and another")
        self.clip, self.candidates = clip, candidates
        self.reading = f"share whose own caption is the nearest among {candidates}, higher is better"

    def compute(self) -> dict[str, Tensor]:
        """The share."""
        pictures, prompts, captions = self.pairs()
        found = own_caption_first(pictures, prompts, captions, candidates=self.candidates)
        name = f"r_precision_{self.clip}"
        return {name: self.mean(name, found, captions.to(found.device))}


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

    Raises UserError: fewer different captions than candidates.
    """
    numbers, owners = captions.unique(return_inverse=True)
    if len(numbers) < candidates:
        raise UserError(
            f"R-precision among {candidates} captions needs as many different ones, got {len(numbers)}: "
            f"measure more captions or lower candidates"
        )
    unit = unit_rows(texts)
    texts = replace(unit, order=unit.order[_first_of_each(captions[:, None]).to(unit.order.device)])
    found = []
    for rows, own in zip(blocks(unit_rows(images)), owners.split(ROWS_AT_ONCE), strict=True):
        asked = torch.stack([_asked(caption, len(numbers), candidates) for caption in own.tolist()])
        asked, cosines = asked.to(rows.device), rows.new_empty(asked.shape)
        for start, block in zip(range(0, len(texts), ROWS_AT_ONCE), blocks(texts), strict=True):
            here = (asked >= start) & (asked < start + len(block))
            places = (asked - start).clamp(0, len(block) - 1)
            cosines = torch.where(here, (rows @ block.T).gather(1, places), cosines)
        found.append((cosines[:, :1] > cosines[:, 1:]).all(1))
    return torch.cat(found)


def _asked(caption: int, count: int, candidates: int) -> Int[Tensor, "c"]:
    """A caption's number and those of some others, which it decides."""
    others = torch.randperm(count - 1, generator=torch.Generator().manual_seed(caption))[: candidates - 1]
    return torch.cat([torch.tensor([caption]), others + (others >= caption)])
