"""Strengths of models from votes: closed forms of two models, the likelihood equations of three."""

import math

import pytest

from ldm.serve.bradley_terry import ADDED, Vote, Z, share, strengths


def votes(first: str, second: str, wins: int, losses: int, ties: int = 0) -> list[Vote]:
    scores = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return [Vote(first, second, score) for score in scores]


@pytest.mark.parametrize(("wins", "losses", "ties"), [(7, 3, 0), (3, 7, 0), (5, 0, 0), (2, 1, 4)])
def test_two_models_have_the_log_odds_of_their_votes_and_walds_interval(wins, losses, ties):
    (group,) = strengths(votes("x", "y", wins, losses, ties))
    one, other = wins + ties / 2 + ADDED, losses + ties / 2 + ADDED
    odds, error = math.log(one / other), Z * math.sqrt(1 / one + 1 / other)
    found = {each.model: each for each in group}
    assert found["x"].value == pytest.approx(odds, abs=1e-6)
    assert (found["x"].low, found["x"].high) == pytest.approx((odds - error, odds + error), abs=1e-5)
    assert found["y"].value == pytest.approx(-odds, abs=1e-6)
    assert share(found["x"].value) == pytest.approx(one / (one + other), abs=1e-6)


def test_the_strengths_of_three_models_solve_the_likelihood_equations():
    listed = votes("x", "y", 8, 2) + votes("y", "z", 5, 5) + votes("x", "z", 6, 1, ties=3)
    (group,) = strengths(listed)
    # against the mean of the two others: two thirds of it is the distance to the mean of all three
    value = {each.model: each.value * 2 / 3 for each in group}
    for model in value:
        own = sum(
            vote.for_first if vote.first == model else 1 - vote.for_first
            for vote in listed
            if model in vote[:2]
        )
        expected = sum(10 * share(value[model] - value[other]) for other in value if other != model)
        shrunk = sum(2 * ADDED * share(value[model] - value[other]) for other in value if other != model)
        assert own + 2 * ADDED == pytest.approx(expected + shrunk, abs=1e-5)
    assert [each.model for each in group] == sorted(value, key=lambda name: -value[name])
    assert {each.votes for each in group} == {20}


def test_more_votes_of_the_same_kind_narrow_the_interval():
    (few,), (many,) = (strengths(votes("x", "y", 3 * times, times)) for times in (2, 50))
    assert many[0].high - many[0].low < (few[0].high - few[0].low) / 3


def test_models_that_no_vote_connects_are_not_compared():
    groups = strengths(votes("x", "y", 2, 1) + votes("u", "v", 1, 1))
    assert sorted(sorted(each.model for each in group) for group in groups) == [["u", "v"], ["x", "y"]]
    assert strengths([]) == []
