"""Retrieval: does the right item come first when a gallery is sorted by cosine to a query?"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from ldm import UserError
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, blocks
from ldm.metrics.picture_metric import GatheredFeatures, Reference


def ranks(
    queries: Rows, gallery: Rows, *, query_keys: Int[Tensor, " q"], gallery_keys: Int[Tensor, " g"]
) -> Int[Tensor, " q"]:
    """How many wrong items stand before each query's best right one, 0 for a hit at once.

    Items are right where their key is the query's. A tie counts against the query, so a network that gives
    every item the same feature finds nothing.

    Raises:
        UserError: a query without a right item in the gallery.
    """
    absent = ~torch.isin(query_keys, gallery_keys)
    if absent.any():
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


def recall_at_k(
    queries: Float[Tensor, "q d"],
    gallery: Float[Tensor, "g d"],
    truth: Int[Tensor, " q"],
    *,
    ks: Sequence[int] = (1, 5),
) -> dict[int, Float[Tensor, ""]]:
    """Share of queries whose right item, row `truth` of the gallery, is among the k nearest; by k."""
    found = ranks(
        queries, gallery, query_keys=truth, gallery_keys=torch.arange(len(gallery), device=truth.device)
    )
    return {k: (found < k).float().mean() for k in ks}


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


class PictureRecall(GatheredFeatures):
    """Share of generated pictures with the right real picture among the k nearest of all: `r<k>_<features>`.

    By cosine of features: does the text decide the picture? Real pictures that show the same thing count as
    wrong, so the score of the right pictures themselves ("real") can lie below 1.

    Args:
        features: name of the extractor.
        ks: how many of the nearest are looked at.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    reading = "share with the right real picture among the k nearest of all, k after the r; higher is better"

    def __init__(self, *, features: str, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__(features=features)
        self.ks = tuple(ks)

    def compute(self) -> dict[str, Tensor]:
        made, real = self.side("generated"), self.side("real")
        found = ranks(made.features, real.features, query_keys=made.rows, gallery_keys=real.rows)
        return {f"r{k}_{self.features}": (found < k).double().mean() for k in self.ks}


class Retrieval(Metric):
    """Recall both ways over all pairs of an evaluation, gathered from all ranks.

    Args:
        ks: how many of the nearest are looked at.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    images: list[Tensor]
    texts: list[Tensor]
    keys: list[Tensor]

    def __init__(self, *, ks: Sequence[int] = (1, 5)) -> None:
        super().__init__()
        self.ks = tuple(ks)
        for name in ("images", "texts", "keys"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"], keys: Int[Tensor, " b"]
    ) -> None:
        """Takes in pairs; pairs of one picture carry one key."""
        self.images.append(images.detach())
        self.texts.append(texts.detach())
        self.keys.append(keys)

    def compute(self) -> dict[str, Tensor]:
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
