"""Inception Score: sure about each picture, undecided about all of them."""

from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ldm.metrics.gathered import GatheredFeatures
from ldm.metrics.names import result_name
from ldm.metrics.picture_metric import Observed, Reference


class Score(NamedTuple):
    """Mean and standard deviation (of the parts themselves, not of the mean) over the parts of a set."""

    mean: Float[Tensor, ""]
    sd: Float[Tensor, ""]


def inception_score(logits: Float[Tensor, "n c"], *, splits: int = 10, seed: int = 2020) -> Score:
    """exp(E_x KL(p(y|x) || p(y))) of each part of a shuffled set (Salimans et al. 2016, section 4), float64.

    In [1, c]. It falls with the number of pictures in a part, so scores of different counts don't compare.

    Args:
        splits: into how many parts the set is cut.
        seed: of the shuffle; this one and the cuts are torch-fidelity's.

    Raises:
        ValueError: fewer pictures than parts.
    """
    count = len(logits)
    if count < splits:
        raise ValueError(f"an Inception Score in {splits} parts needs as many pictures, got {count}")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(count)).to(logits.device)
    log_p = logits[order].double().log_softmax(1)
    edges = [part * count // splits for part in range(splits + 1)]
    scores = torch.stack([_score(log_p[a:b]) for a, b in pairwise(edges)])
    return Score(scores.mean(), scores.std(correction=0))


def _score(log_p: Float[Tensor, "n c"]) -> Float[Tensor, ""]:
    marginal = log_p.exp().mean(0, keepdim=True)
    return (log_p.exp() * (log_p - marginal.log())).sum(1).mean().exp()


class InceptionScore(GatheredFeatures):
    """Inception Score, `is_mean` and `is_sd`; of another classifier's logits with their name behind.

    Sees no real picture: read it beside the real pictures' own.

    Args:
        features: name of the logits.
        splits: parts that mean and deviation are taken over.
    """

    references: ClassVar[tuple[Reference, ...]] = ("real",)

    def __init__(self, *, features: str = "inception_logits", splits: int = 10) -> None:
        super().__init__(features=features)
        self.splits = splits

    def update(self, batch: Observed, *, real: bool) -> None:
        if not real:
            super().update(batch, real=real)

    def compute(self) -> dict[str, Tensor]:
        found = inception_score(self.side("generated", at_least=self.splits).features, splits=self.splits)
        return {result_name(f"is_{name}", self.features): value for name, value in found._asdict().items()}
