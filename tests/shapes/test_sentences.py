"""What sentences say of scenes, written and read back."""

from random import Random

import pytest

from data_prep.shapes import HeldOut, composed, long_sentences
from ldm import UserError
from ldm.shapes.scene import Thing
from ldm.shapes.sentences import Claim, Group, judge, sentences, understood

HELD_OUT = HeldOut.of(0)
BLUE_RING = Group(count=1, size=None, colour="blue", shape="ring")
TWO_SQUARES = Group(count=2, size=None, colour="green", shape="square")


@pytest.mark.parametrize(
    "sentence",
    [
        "a blue ring above two green squares",
        "blue ring, and below it a pair of green squares",
        "two green squares below a blue ring",
        "There is a blue ring above a pair of green squares.",
    ],
)
def test_one_claim_in_other_words(sentence: str) -> None:
    ring_first = Claim(groups=(BLUE_RING, TWO_SQUARES), relations=((0, "above", 1),))
    squares_below = Claim(groups=(BLUE_RING, TWO_SQUARES), relations=((1, "below", 0),))
    turned = Claim(groups=(TWO_SQUARES, BLUE_RING), relations=((0, "below", 1),))
    assert understood(sentence) in (ring_first, squares_below, turned)


def test_a_chain_of_three_groups_relates_each_to_the_next() -> None:
    claim = understood(
        "a red ring above two blue stars which are to the left of a pink cross and nothing else"
    )
    assert [group.count for group in claim.groups] == [1, 2, 1]
    assert claim.relations == ((0, "above", 1), (1, "left", 2))


@pytest.mark.parametrize("split", ["train", "held_out", "long"])
def test_every_caption_of_a_scene_is_true_of_it(split: str) -> None:
    random = Random(split)
    for _ in range(40):
        claim, scene = composed(random, split, HELD_OUT)
        texts = long_sentences(claim, random) if split == "long" else sentences(claim, random)
        assert len(set(texts)) == 5
        for text in texts:
            assert judge(understood(text), scene.things).everything, text


def test_the_parts_of_a_verdict_fail_one_by_one() -> None:
    def things(**changes: object) -> list[Thing]:
        ring = {"shape": "ring", "colour": "blue", "size": "small", "x": 0.5, "y": 0.2} | changes
        squares = [Thing(shape="square", colour="green", size="large", x=x, y=0.7) for x in (0.3, 0.7)]
        return [Thing(**ring), *squares]

    claim = understood("a small blue ring above two green squares")
    right = judge(claim, things())
    assert right == type(right)(count=True, colours=True, shapes=True, relations=True, everything=True)
    assert not judge(claim, things()[1:]).count
    assert not judge(claim, things(colour="red")).colours
    assert not judge(claim, things(shape="circle")).shapes
    below = judge(claim, things(y=0.9))
    assert (below.count, below.colours, below.shapes, below.relations, below.everything) == (
        True, True, True, False, False,
    )  # fmt: skip
    large = judge(claim, things(size="large"))
    assert large.count
    assert large.colours
    assert large.shapes
    assert not large.everything
    assert not any(vars(judge(claim, None)).values())


@pytest.mark.parametrize(
    ("sentence", "what"),
    [
        ("a blue rong", "did you mean 'ring'"),
        ("a blu ring", "did you mean 'blue'"),
        ("five blue rings", "there is no number 'five'"),
        ("a blue ring beneath a red star", "can't be checked"),
        ("", "can't be checked"),
        ("four red stars above a blue ring", "more than 4 shapes"),
        ("a dog runs through the grass", "can't be checked"),
    ],
)
def test_unknown_words_are_refused_by_name(sentence: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        understood(sentence)
