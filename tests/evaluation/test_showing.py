import dataclasses

import pytest
import torch

from ldm.evaluation.report import memorisation_sentence
from ldm.metrics.neighbours import Memorisation, find_copies


@pytest.fixture
def judged(evaluator):
    """`judged(draw)`: the first set's result, with its pictures judged for memorisation."""
    first = dataclasses.replace(evaluator.protocol.sets[0], metrics=("memorisation",))
    metrics = {"memorisation": Memorisation(features="colours", quantile=0.1)}
    return lambda draw: dataclasses.replace(evaluator, metrics=metrics, show=3).measure(draw, first)


def test_repeated_pictures_are_shown_beside_those_that_they_repeat(judged, paints):
    result = judged(paints)
    closest = result.record["closest"]
    assert closest["copied"] == closest["images"] == 8
    assert len(result.pairs) == 3
    for (_, text), (generated, real) in result.pairs:
        assert torch.equal(generated, real)
        assert text == "generated | train, at 0.000"
    assert closest["distances"] == pytest.approx([0, 0, 0], abs=1e-6)
    sentence = memorisation_sentence(closest)
    assert sentence.startswith("8 of the first 8 pictures are nearer to a real one than a distance of ")
    assert "90% of the real pictures" in sentence


def test_pictures_unlike_all_real_ones_are_shown_all_the_same_and_said_to_be_none(judged, gallery):
    unlike = torch.tensor([224, 64, 192], dtype=torch.uint8).view(1, 3, 1, 1)
    result = judged(lambda requests: unlike.expand(len(requests), 3, 16, 16))
    closest = result.record["closest"]
    assert closest["copied"] == 0
    assert len(result.pairs) == 3
    assert memorisation_sentence(closest).startswith("None of the first 8 pictures is nearer")
    assert closest["limit"] == find_copies(*[gallery.features["colours"]] * 2, quantile=0.1).limit


def test_the_nearest_pair_comes_first_and_the_count_agrees_with_the_row(judged, paints_with_errors):
    result = judged(paints_with_errors)
    closest = result.record["closest"]
    assert closest["distances"] == sorted(closest["distances"])
    (row,) = result.rows
    assert row.value == closest["copied"] / closest["images"]


def test_pictures_that_no_training_saw_cannot_have_been_copied(evaluator, paints):
    """Drawn are the held-out pictures themselves."""
    held_out = dataclasses.replace(evaluator.protocol.sets[1], metrics=("memorisation",))
    metric = Memorisation(features="colours", quantile=0.1, split="train")
    measured = dataclasses.replace(evaluator, metrics={"memorisation": metric}, show=3)
    assert measured.measure(paints, held_out).record["closest"]["copied"] == 6
    evaluator.reference_set.tell_splits([metric])
    result = measured.measure(paints, held_out)
    closest = result.record["closest"]
    assert closest["copied"] == result.rows[0].value == 0
    assert min(closest["distances"]) > 0
    for (_, text), (generated, real) in result.pairs:
        assert text.startswith("generated | train, at ")
        assert not torch.equal(generated, real)


def test_of_a_gallery_without_the_split_all_pictures_can_have_been_copied(gallery):
    metric = Memorisation(features="colours", split="reference")
    gallery.tell_splits([metric])
    assert metric.seen is None


def test_without_a_measure_of_memorisation_there_is_nothing_to_show(evaluator, paints):
    result = evaluator.measure(paints, evaluator.protocol.sets[0])
    assert result.record["closest"] is None
    assert result.pairs == []
