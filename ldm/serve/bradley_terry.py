"""Strengths of models from votes between two of them (Bradley & Terry 1952, eq. 1), with 95 % intervals.

P(i is preferred to j) = 1 / (1 + exp(b_j - b_i)). A tie is half a vote for each. Half a vote for each side is
added to every pair of models that was compared, so that a model that has won every vote has a finite strength
(the correction of Haldane 1956). The intervals are Wald's, of the inverse of the observed information.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

ADDED = 0.5  # votes for each side of a pair
Z = 1.959963984540054  # of a normal distribution, two-sided, 95 %


class Vote(NamedTuple):
    """A vote between two models: 1 for the first, 0 for the second, 0.5 for a tie."""

    first: str
    second: str
    for_first: float


class Strength(NamedTuple):
    """A model's log-odds to be preferred to the average of the models that it can be compared with.

    `low` and `high` are the ends of the 95 % interval; `votes` is how many votes it took part in.
    """

    model: str
    value: float
    low: float
    high: float
    votes: int


def strengths(votes: Iterable[Vote]) -> list[list[Strength]]:
    """The models of each group that votes connect, best first; other groups can't be compared with it."""
    from scipy.sparse.csgraph import connected_components

    listed = list(votes)
    models = sorted({name for vote in listed for name in vote[:2]})
    if not models:
        return []
    place = {name: number for number, name in enumerate(models)}
    wins = np.zeros((len(models), len(models)))
    for vote in listed:
        one, other = place[vote.first], place[vote.second]
        wins[one, other] += vote.for_first
        wins[other, one] += 1 - vote.for_first
    count, group = connected_components(wins + wins.T, directed=False)
    members = [np.flatnonzero(group == number) for number in range(count)]
    return [fitted([models[each] for each in own], wins[np.ix_(own, own)]) for own in members]


def fitted(models: list[str], wins: np.ndarray) -> list[Strength]:
    """The strengths of models that votes connect; `wins[i, j]` are the votes for i against j."""
    from scipy.optimize import minimize

    votes = (wins + wins.T).sum(axis=1)
    wins = wins + ADDED * ((wins + wins.T) > 0)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        """The negative log-likelihood and its gradient; the mean is pulled to 0, which no vote determines."""
        gaps = values[:, None] - values[None, :]
        missed = wins / (1 + np.exp(gaps))
        value = (wins * np.logaddexp(0, -gaps)).sum() + values.sum() ** 2 / 2
        return value, missed.sum(0) - missed.sum(1) + values.sum()

    found = minimize(loss, np.zeros(len(models)), jac=True, method="BFGS", options={"gtol": 1e-9})
    covariance = np.linalg.pinv(information(found.x, wins))
    # against the mean of the others, not of all: of two models it is the log-odds between them
    against = (np.eye(len(models)) * len(models) - 1) / (len(models) - 1)
    values = against @ found.x
    errors = Z * np.sqrt(np.diag(against @ covariance @ against.T))
    numbers = zip(values.tolist(), (values - errors).tolist(), (values + errors).tolist(), votes, strict=True)
    listed = [Strength(name, *own, int(count)) for name, (*own, count) in zip(models, numbers, strict=True)]
    return sorted(listed, key=lambda each: -each.value)


def information(values: np.ndarray, wins: np.ndarray) -> np.ndarray:
    """The observed information, the Hessian of the negative log-likelihood; its null space is the mean."""
    chance = 1 / (1 + np.exp(values[None, :] - values[:, None]))
    weights = (wins + wins.T) * chance * (1 - chance)
    return np.diag(weights.sum(axis=1)) - weights


def share(log_odds: float) -> float:
    """The share of votes that log-odds stand for."""
    return float(1 / (1 + np.exp(-log_odds)))


def as_json(groups: Iterable[Iterable[Strength]], names: Mapping[str, str]) -> list[list[dict[str, object]]]:
    """Groups of strengths as plain data, with the shares of votes that they stand for."""
    return [
        [
            {
                "model": each.model,
                "name": names.get(each.model, each.model),
                "strength": each.value,
                "interval": [each.low, each.high],
                "share": share(each.value),
                "share_interval": [share(each.low), share(each.high)],
                "votes": each.votes,
            }
            for each in group
        ]
        for group in groups
    ]
