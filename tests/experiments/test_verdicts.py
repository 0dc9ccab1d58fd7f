"""Intervals cover, corrections hold and power is what theory says, on numbers whose variances are known."""

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import Estimate, Measured, estimate, variance_split
from experiments.verdicts import judged

TRIES = 800


def within(share, expected, *, tries=TRIES):
    """Whether a share of tries is what it should be, to four standard deviations of a binomial."""
    return abs(share - expected) <= 4 * (expected * (1 - expected) / tries) ** 0.5


def trained(values, *, seeds=None):
    """A measure of trainings that were each measured once."""
    return Measured(
        per_seed=[[float(value)] for value in values], training_seeds=seeds or [None] * len(values)
    )


def covers(found, true, level=0.95):
    low, high = found.interval(level)
    return low <= true <= high


def test_an_interval_over_training_seeds_covers_the_difference():
    """Spreads of 1 and 3 and counts of 5 and 7: Welch's, which isn't exact, is right to some thousandths."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(TRIES):
        a, b = trained(rng.normal(0, 1, 5)), trained(rng.normal(2, 3, 7))
        hits += covers(estimate(a, b, same_seeds=False), 2)
    assert within(hits / TRIES, 0.95)


def test_pairs_of_training_seeds_take_out_what_both_sides_share():
    rng, hits, widths = np.random.default_rng(1), 0, []
    for _ in range(TRIES):
        shared, own, other = rng.normal(0, 10, 5), rng.normal(0, 1, 5), rng.normal(1, 1, 5)
        pair = [trained(shared + each, seeds=[0, 1, 2, 3, 4]) for each in (own, other)]
        found = estimate(*pair, same_seeds=False)
        hits += covers(found, 1)
        widths.append(np.diff(found.interval(0.95)))
    assert within(hits / TRIES, 0.95)
    expected = 2 * stats.t.ppf(0.975, 4) * (2 / 5) ** 0.5 * 0.94  # 0.94: mean of a deviation of 5 over sigma
    assert np.mean(widths) == pytest.approx(expected, rel=0.05)
    assert found.contains == "training seeds (5, paired)"


def test_pairs_are_found_by_their_seed_in_any_order():
    a = trained([1.0, 2.0, 4.0], seeds=[0, 1, 2])
    b = trained([4.5, 1.5, 2.4], seeds=[2, 0, 1])
    found = estimate(a, b, same_seeds=False).interval(0.95)
    expected = stats.ttest_rel([1.5, 2.4, 4.5], [1.0, 2.0, 4.0]).confidence_interval(0.95)
    assert found == pytest.approx(expected)


def test_one_training_is_held_against_the_spread_of_several():
    """The closed form: sd * sqrt(1 + 1 / n) times Student's quantile, about the difference."""
    rng, hits = np.random.default_rng(2), 0
    for _ in range(TRIES):
        several, one = trained(rng.normal(0, 1, 5)), trained(rng.normal(0, 1, 1))
        hits += covers(estimate(several, one, same_seeds=True), 0)
    assert within(hits / TRIES, 0.95)


def test_captions_of_one_training_are_resampled_in_pairs():
    """Shares of 120 captions that lie 0.1 apart: the bootstrap covers the difference of the probabilities."""
    rng, hits, tries = np.random.default_rng(3), 0, 120
    for _ in range(tries):
        shared = rng.random(120)
        sides = [(shared < limit).astype(float) for limit in (0.5, 0.6)]
        a, b = (Measured(per_seed=[[each.mean()]], per_caption=[[each]]) for each in sides)
        found = estimate(a, b, same_seeds=True)
        hits += covers(found, 0.1)
    assert hits / tries > 0.95 - 4 * (0.95 * 0.05 / tries) ** 0.5
    assert found.contains == "captions (120, paired), sampling seeds"


def test_sampling_seeds_of_one_training_answer_where_captions_can_not():
    a, b = Measured(per_seed=[[1.0, 2.0, 4.0]]), Measured(per_seed=[[1.5, 2.4, 4.5]])
    found = estimate(a, b, same_seeds=True)
    expected = stats.ttest_rel([1.5, 2.4, 4.5], [1.0, 2.0, 4.0]).confidence_interval(0.9)
    assert found.interval(0.9) == pytest.approx(expected)
    assert found.contains == "sampling seeds (3, paired)"
    assert estimate(a, b, same_seeds=False).contains == "sampling seeds (3 and 3)"
    alone = estimate(Measured(per_seed=[[1.0]]), Measured(per_seed=[[2.0]]), same_seeds=True)
    assert alone.interval is None


@pytest.mark.parametrize(("count", "decided"), [(3, False), (5, False), (6, True), (9, True)])
def test_equal_steps_count_as_much_as_the_sign_test_says(count, decided):
    """n pairs that all differ by the same are a chance of 2 / 2^n: below 5 % from six on."""
    seeds = [*range(count)]
    a, b = (trained(np.arange(count) + shift, seeds=seeds) for shift in (0.0, 1.0))
    low, high = estimate(a, b, same_seeds=True).interval(0.95)
    assert (low > 0) is decided
    assert high == 1


def test_equal_sides_do_not_differ():
    side = Measured(per_seed=[[1.0, 1.0]], per_caption=[[[1.0] * 30] * 2])
    assert estimate(side, side, same_seeds=True).interval(0.95) == (0, 0)


def test_all_verdicts_together_are_right_as_often_as_the_level_says():
    """20 measures without any difference: at least one is decided in 5 % of the families, by Holm's bound."""
    rng, families, wrong = np.random.default_rng(4), 100, 0
    names = [f"m{number}" for number in range(20)]
    better = dict.fromkeys(names, True)
    for _ in range(families):
        found = {
            name: estimate(trained(rng.normal(size=5)), trained(rng.normal(size=5)), same_seeds=False)
            for name in names
        }
        verdicts = judged(found, higher_is_better=better, level=0.95).values()
        wrong += any(each.word != "inconclusive" for each in verdicts)
    assert wrong / families <= 0.05 + 4 * (0.05 * 0.95 / families) ** 0.5


def test_the_power_is_that_of_the_noncentral_t():
    """A difference of two standard deviations of the pairs, five pairs, one measure."""
    rng, right = np.random.default_rng(5), 0
    for _ in range(TRIES):
        pair = [trained(rng.normal(shift, 0.5**0.5, 5), seeds=[*range(5)]) for shift in (0, 2)]
        verdict = judged({"m": estimate(*pair, same_seeds=True)}, higher_is_better={"m": True}, level=0.95)[
            "m"
        ]
        right += verdict.word == "better"
    limit, centre = stats.t.ppf(0.975, 4), 2 * 5**0.5
    assert within(right / TRIES, stats.nct.sf(limit, 4, centre) + stats.nct.cdf(-limit, 4, centre))


def test_the_procedure_is_holms():
    """Normal intervals, whose p values are known: the same are decided as by the ordered p values."""
    rng, centres = np.random.default_rng(6), np.linspace(0, 4, 12)

    def normal(centre):
        def interval(level):
            return stats.norm.interval(level, loc=centre, scale=1)

        return Estimate(difference=centre, interval=interval, contains="")

    for _ in range(20):
        values = centres + rng.normal(0, 0.5, 12)
        p = np.sort(2 * stats.norm.sf(np.abs(values)))
        steps = p < 0.05 / np.arange(12, 0, -1)
        expected = 12 if steps.all() else int(np.argmin(steps))
        found = judged(
            {str(k): normal(value) for k, value in enumerate(values)},
            higher_is_better=dict.fromkeys(map(str, range(12)), False),
            level=0.95,
        )
        assert sum(each.word != "inconclusive" for each in found.values()) == expected
        assert {each.word for each in found.values() if each.bounds[0] > 0} <= {"worse"}


def test_variances_between_and_within_trainings_are_told_apart():
    rng = np.random.default_rng(7)
    values = rng.normal(0, 3, (2000, 1)) + rng.normal(0, 2, (2000, 4))
    between, within_them = variance_split(values)
    assert between == pytest.approx(9, rel=0.1)
    assert within_them == pytest.approx(4, rel=0.1)
    assert variance_split(np.zeros((3, 2))) == (0, 0)
    assert variance_split([[1.0], [2.0], [3.0]]) == (1, 0)


def test_what_a_sampling_seed_does_to_all_trainings_is_no_variance_between_them():
    """Trainings share their sampling seeds: effects of variance 9 by training, 100 by seed, 4 of both."""
    rng = np.random.default_rng(8)
    found = [
        variance_split(rng.normal(0, 3, (5, 1)) + rng.normal(0, 10, 3) + rng.normal(0, 2, (5, 3)))
        for _ in range(2000)
    ]
    between, sampling = np.mean(found, axis=0)
    assert between == pytest.approx(9, rel=0.1)
    assert sampling == pytest.approx(104, rel=0.1)
