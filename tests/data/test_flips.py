"""Facts about which pictures may be mirrored."""

import pytest

from ldm.data.augment import flip, names_a_side

SIDED = [
    "A boy throws a ball with his left hand.",
    "The woman on the right is laughing.",
    "Left: a dog asleep on a rug",
    "A right-handed pitcher lets go of the ball.",
    "The leftmost of four cyclists looks around.",
    "Someone turns rightward into an alley.",
    "A lefthanded drummer",
    "Skaters go round the rink CLOCKWISE.",
    "Two cars take a sharp left-turn.",
    "A dog stands right in front of a door.",  # not a side, but only a reader knows
    "A bag was left behind on the bench.",
]
SIDELESS = [
    "A brightly-coloured kite over a bright beach.",
    "Two girls sit upright and look frightened.",
    "Leftovers are on the table of a wright.",
    "A clock hangs above a mirror.",
    "A man in front of a cleft rock says it is alright.",
    "",
]


@pytest.mark.parametrize("text", SIDED)
def test_a_caption_that_says_left_or_right_is_never_mirrored(text):
    assert names_a_side(text)
    assert not any(flip(seed=seed, position=p, text=text) for seed in range(4) for p in range(16))


@pytest.mark.parametrize("text", SIDELESS)
def test_parts_of_other_words_name_no_side(text):
    assert not names_a_side(text)


def test_a_flip_is_a_fair_draw_of_seed_and_position():
    draws = [[flip(seed=seed, position=p, text="a dog") for p in range(1000)] for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    assert abs(sum(draws[0]) - 500) < 5 * 250**0.5  # five standard errors
