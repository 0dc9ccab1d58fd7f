"""Inception Score: sure about each picture, undecided about all of them."""

from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ldm import UserError
from ldm.metrics.mmap_tables import ROWS_AT_ONCE, Rows, blocks
from ldm.metrics.picture_metric import GatheredFeatures, Observed, Reference, result_name


class Score(NamedTuple):
    """Mean and standard deviation (of the parts themselves, not of the mean) over the parts of a set."""

    mean: Float[Tensor, ""]
    sd: Float[Tensor, ""]


def inception_score(logits: Rows, *, splits: int = 10, seed: int = 2020) -> Score:
    """exp(E_x KL(p(y|x) || p(y))) of each part of a shuffled set (Salimans et al. 2016, section 4), float64.

    In [1, c]. It falls with the number of pictures in a part, so scores of different counts don't compare.

    Args:
        splits: into how many parts the set is cut.
        seed: of the shuffle; this one and the cuts are torch-fidelity's.

    Raises:
        UserError: fewer pictures than parts.
    """
    count = len(logits)
    if count < splits:
        raise UserError(f"an Inception Score in {splits} parts needs as many pictures, got {count}")
    order = np.random.RandomState(seed).permutation(count)
    edges = [part * count // splits for part in range(splits + 1)]
    parts = torch.empty(count, dtype=torch.long)  # which one each picture is in
    for part, (start, stop) in enumerate(pairwise(edges)):
        parts[torch.from_numpy(order[start:stop])] = part
    scores = _scores(logits, parts, splits)
    return Score(scores.mean(), scores.std(correction=0))


def _scores(logits: Rows, parts: Int[Tensor, "n"], splits: int) -> Float[Tensor, " s"]:
    """exp(mean over x of sum_y p log p - sum_y m log m), m the mean of p: sums over blocks are enough."""
    sizes = parts.bincount(minlength=splits).double()
    certainty, total = torch.zeros(splits, dtype=torch.float64), None
    for rows, owners in zip(blocks(logits), parts.split(ROWS_AT_ONCE), strict=True):
        log_p = rows.log_softmax(1).cpu()
        p = log_p.exp()
        certainty.index_add_(0, owners, (p * log_p).sum(1))
        total = torch.zeros(splits, p.shape[1], dtype=torch.float64) if total is None else total
        total.index_add_(0, owners, p)
    marginal = total / sizes[:, None]
    return (certainty / sizes + torch.special.entr(marginal).sum(1)).exp()


class InceptionScore(GatheredFeatures):
    """Inception Score, `is_mean` and `is_sd`; of another classifier's logits with their name behind.

    Sees no real picture: read it beside the real pictures' own.

    Args:
        features: name of the logits.
        splits: parts that mean and deviation are taken over.
    """

    references: ClassVar[tuple[Reference, ...]] = ("ceiling", "real")
    against_real: ClassVar[bool] = False

    def __init__(self, *, features: str = "inception_logits", splits: int = 10) -> None:
        super().__init__(features=features)
        self.splits = splits
        self.reading = (
            f"Inception Score, mean and deviation over {splits} parts, higher is better; falls with the "
            f"count: see the real ones'"
        )

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            super().update(batch, real=real)

    def compute(self) -> dict[str, Tensor]:
        found = inception_score(self.side("generated", at_least=self.splits).features, splits=self.splits)
        return {result_name(f"is_{name}", self.features): value for name, value in found._asdict().items()}
