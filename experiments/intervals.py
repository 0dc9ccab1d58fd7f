"""How far two sides differ in one measure: the difference, its interval at any level, and what that contains.

The statistics are scipy's. What varies decides which of them is right:

- several trainings on both sides: Student's t over training seeds, paired where both sides have the same
  seeds, else Welch's;
- one training against several: where the next training would lie, by the spread of the several;
- one training on both sides: a BCa bootstrap of the captions where each caption has a value, paired, as both
  sides have the same captions; else Student's t over sampling seeds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import scipy  # whose `stats` loads at its first use

RESAMPLES = 9_999
SEED = 0  # of the bootstrap, so that a comparison prints the same each time
FEWEST_CAPTIONS = 20  # of fewer a bootstrap knows too little
ROUNDING = 1e-9  # relative: values nearer than this are equal
NUMBERS_AT_ONCE = 10**7  # of a bootstrap's resamples in memory

Bounds = tuple[float, float]
Interval = Callable[[float], Bounds]  # level of confidence -> bounds


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of a side.

    Attributes:
        per_seed: its value for each training and sampling seed.
        per_caption: for each training, sampling seed and caption, where it is a mean over captions.
        training_seeds: of the trainings, where they are known.
        exact: whether the values of sampling seeds are their own, and not made from mean and deviation.
        higher_is_better: its direction; None where results of an earlier version don't say it.
    """

    per_seed: Sequence[Sequence[float]]
    per_caption: Sequence[Sequence[Sequence[float]]] = ()
    training_seeds: Sequence[int | None] = ()
    higher_is_better: bool | None = True
    exact: bool = True

    @property
    def by_training(self) -> np.ndarray:
        """The mean over sampling seeds of each training."""
        return np.array([np.mean(seeds) for seeds in self.per_seed])

    @property
    def value(self) -> float:
        """The mean over trainings and sampling seeds."""
        return float(self.by_training.mean())


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A difference, second side minus first.

    Attributes:
        interval: its bounds at a level of confidence; None where nothing is known of its spread.
        contains: what the interval contains, or why there is none.
    """

    difference: float
    interval: Interval | None
    contains: str


def estimate(a: Measured, b: Measured, *, same_seeds: bool) -> Estimate:
    """The difference of a measure between two sides with the same captions.

    Args:
        same_seeds: whether both have the same sampling seeds, so that these come in pairs.
    """
    counts = len(a.per_seed), len(b.per_seed)
    if min(counts) > 1:
        return _over_trainings(a, b)
    if max(counts) > 1:
        return _one_against_several(a, b)
    if (captions := _by_caption(a, b)) is not None:
        return _paired(captions, f"captions ({len(captions)}, paired), sampling seeds", by=bootstrapped)
    in_pairs = same_seeds and a.exact and b.exact
    return _over_sampling_seeds(np.array(a.per_seed[0]), np.array(b.per_seed[0]), in_pairs=in_pairs)


def _over_trainings(a: Measured, b: Measured) -> Estimate:
    own, other = (dict(zip(side.training_seeds, side.by_training, strict=False)) for side in (a, b))
    if None not in own and own.keys() == other.keys() and len(own) == len(a.per_seed) == len(b.per_seed):
        found = np.array([other[seed] - own[seed] for seed in own])
        return _paired(found, f"training seeds ({len(found)}, paired)")
    what = f"training seeds ({len(a.per_seed)} and {len(b.per_seed)})"
    return _unpaired(a.by_training, b.by_training, what)


def _one_against_several(a: Measured, b: Measured) -> Estimate:
    """The interval is that of a further training of the side with several: its mean is uncertain, too."""
    several = a.by_training if len(a.per_seed) > 1 else b.by_training
    count, difference = len(several), b.value - a.value
    if _is_constant(several):
        return _equal_steps(difference, "no training differs from another", chance=1 / (count + 1))
    scale = several.std(ddof=1) * (1 + 1 / count) ** 0.5
    return Estimate(
        difference=difference,
        interval=lambda level: scipy.stats.t.interval(level, count - 1, loc=difference, scale=scale),
        contains=f"training seeds (of the side with {count}; the other has one)",
    )


def _by_caption(a: Measured, b: Measured) -> np.ndarray | None:
    """The difference of each caption, mean over sampling seeds; None where there are none, or too few."""
    if not (a.per_caption and b.per_caption):
        return None
    own, other = (np.mean(np.array(side.per_caption[0]), axis=0) for side in (a, b))
    return other - own if len(own) == len(other) >= FEWEST_CAPTIONS else None


def _over_sampling_seeds(own: np.ndarray, other: np.ndarray, *, in_pairs: bool) -> Estimate:
    if min(len(own), len(other)) < 2:
        difference = float(other.mean() - own.mean())
        if abs(difference) > ROUNDING:
            return Estimate(difference=difference, interval=None, contains="one sampling seed: no spread")
        return _equal_steps(difference, "one sampling seed", chance=1)
    if in_pairs and len(own) == len(other):
        return _paired(other - own, f"sampling seeds ({len(own)}, paired)")
    return _unpaired(own, other, f"sampling seeds ({len(own)} and {len(other)})")


def student(values: np.ndarray) -> Interval:
    """The interval of the mean by Student's t."""
    return scipy.stats.ttest_1samp(values, 0).confidence_interval


def _paired(
    differences: np.ndarray, contains: str, *, by: Callable[[np.ndarray], Interval] = student
) -> Estimate:
    """The mean of differences, with its interval by a method."""
    difference = float(differences.mean())
    if _is_constant(differences):
        return _equal_steps(difference, contains, chance=2.0 ** (1 - len(differences)))
    return Estimate(difference=difference, interval=by(differences), contains=contains)


def _unpaired(own: np.ndarray, other: np.ndarray, contains: str) -> Estimate:
    difference = float(other.mean() - own.mean())
    if _is_constant(own) and _is_constant(other):
        return _equal_steps(difference, contains, chance=2 / comb(len(own) + len(other), len(own)))
    found = scipy.stats.ttest_ind(other, own, equal_var=False)
    return Estimate(difference=difference, interval=found.confidence_interval, contains=contains)


def _equal_steps(difference: float, contains: str, *, chance: float) -> Estimate:
    """Nothing varies: the interval has no width where so equal a difference is no chance, else it reaches 0.

    Args:
        chance: that of so equal a difference if there is none: of the sign or the permutation test.
    """
    difference = 0.0 if abs(difference) <= ROUNDING else difference
    away, reaching = (difference, difference), (min(0.0, difference), max(0.0, difference))
    return Estimate(
        difference=difference,
        interval=lambda level: away if chance < 1 - level else reaching,
        contains=contains,
    )


def _is_constant(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= ROUNDING * max(1e-300, np.abs(values).max()))


def bootstrapped(values: np.ndarray) -> Interval:
    """The interval of the mean by a BCa bootstrap (Efron 1987), whose resamples serve every level."""
    batch = max(1, NUMBERS_AT_ONCE // len(values))
    options = {"method": "BCa", "batch": batch, "rng": np.random.default_rng(SEED)}
    found = scipy.stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, **options)

    def interval(level: float) -> Bounds:
        again = scipy.stats.bootstrap(
            (values,), np.mean, n_resamples=0, bootstrap_result=found, confidence_level=level, **options
        )
        return again.confidence_interval

    return interval


def variance_split(per_seed: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Variance between trainings, and that of sampling within one, of values by training and sampling seed.

    Components of a two-way analysis of variance without replication, since all trainings are sampled with the
    same seeds: what a seed does to all of them alike does not lie between them. The means of the trainings
    vary by the first component and by 1 / (number of seeds) of the residual variance, which is subtracted.
    Neither is below 0. Of one seed, as of a validation loss, whose noise is fixed, all variance is between
    trainings.
    """
    values = np.array(per_seed)
    trainings, seeds = values.shape
    between = float(values.mean(axis=1).var(ddof=1))
    if seeds == 1:
        return between, 0.0
    residuals = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    residual = float((residuals**2).sum()) / ((trainings - 1) * (seeds - 1))
    return max(0.0, between - residual / seeds), float(values.var(axis=1, ddof=1).mean())
