import dataclasses
from statistics import mean, stdev

import pytest
import torch

from ldm import UserError
from ldm.evaluation.protocol import ELSEWHERE, CaptionSet
from ldm.metrics.composition import Composition
from ldm.metrics.diversity import VendiScore, vendi_score
from ldm.metrics.frechet import Moments, frechet_distance
from ldm.metrics.neighbours import DensityCoverage
from ldm.metrics.picture_metric import score


def rows_of(result):
    return {row.metric: row for row in result.rows}


def test_a_perfect_generator_finds_every_picture(evaluator, paints):
    result = evaluator.measure(paints, evaluator.protocol.sets[0])
    rows = rows_of(result)
    assert rows["r1_colours"].value == 1
    assert rows["r1_colours"].real == 1
    assert rows["fd_colours"].value < rows["fd_colours"].ceiling  # halved colours are a poor round trip
    assert rows["fd_colours"].floor > 0
    assert rows["fd_colours"].real is None
    assert result.images == 8
    assert result.seeds == (100, 107)


def test_errors_of_the_generator_show_in_its_recall(evaluator, paints_with_errors):
    result = evaluator.measure(paints_with_errors, evaluator.protocol.sets[1])
    assert rows_of(result)["r1_colours"].value == 0.5


def test_a_generator_that_ignores_its_seed_has_no_diversity(evaluator, paints, paints_with_errors):
    diversity = evaluator.protocol.sets[2]
    assert rows_of(evaluator.measure(paints, diversity))["diversity_colours"].value == pytest.approx(
        0, abs=1e-9
    )
    assert rows_of(evaluator.measure(paints_with_errors, diversity))["diversity_colours"].value > 0.01


def test_the_batch_size_changes_a_number_by_rounding_alone_and_the_hash(evaluator, paints_with_errors):
    caption_set, hashes, found = evaluator.protocol.sets[0], [], []
    for size in (1, 5):
        protocol = dataclasses.replace(evaluator.protocol, batch_size=size)
        sized = dataclasses.replace(evaluator, protocol=protocol)
        found.append(sized.measure(paints_with_errors, caption_set).rows)
        hashes.append(protocol.hash)
    assert len({*hashes}) == 2
    assert dataclasses.replace(evaluator.protocol, batch_size=5).ruler == evaluator.protocol.ruler
    for one, other in zip(*found, strict=True):
        assert one.metric == other.metric
        for name in ("value", "floor", "ceiling", "real"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-9)


def test_a_metric_without_its_network_is_skipped_and_named(evaluator, paints):
    result = evaluator.measure(paints, evaluator.protocol.sets[0])
    assert result.skipped == ["clip_score"]


def test_shown_pictures_are_those_generated_with_the_right_and_the_nearest(evaluator, paints):
    shown = evaluator.measure(paints, evaluator.protocol.sets[2]).shown
    assert len(shown) == 2
    for block in shown:
        first, second, nearest, right = block.pictures
        assert first.shape == second.shape == (3, 16, 16)
        assert torch.equal(first, right)
        assert torch.equal(nearest, right)


def test_unknown_metric_and_split_are_refused(evaluator, paints):
    first = evaluator.protocol.sets[0]
    with pytest.raises(ValueError, match="asks for metric 'fid'"):
        evaluator.measure(paints, dataclasses.replace(first, metrics=("fid",)))
    with pytest.raises(ValueError, match="split 'test' is not in splits"):
        evaluator.reference_set.captions(dataclasses.replace(first, split="test"), seed=0)


def test_two_metrics_with_one_result_name_are_refused(evaluator, gallery):
    nearest = evaluator.metrics["nearest"]
    with pytest.raises(ValueError, match="two metrics call their result 'r1_colours'"):
        score({"a": nearest, "b": nearest}, real=gallery.observed(), generated=gallery.observed())


def test_gallery_numbers_pictures_through_its_splits(gallery):
    assert gallery.count == 26
    assert gallery.offsets == {"train": 0, "val": 20}
    assert torch.equal(gallery.picture(21), gallery.splits["val"].image(1))
    assert gallery.features["colours"].shape == (26, 12)
    (batch,) = gallery.observed([21, 3])
    assert torch.equal(batch.features["colours"][0], gallery.features["colours"][21])


def test_seeds_give_a_mean_and_a_deviation_over_pictures_that_share_no_seed(evaluator, paints_with_errors):
    protocol = dataclasses.replace(evaluator.protocol, seeds=3)
    thrice = dataclasses.replace(evaluator, protocol=protocol)
    caption_set = protocol.sets[0]
    requests = [thrice.requests(caption_set, repeat=repeat) for repeat in range(3)]
    assert [one.seed for each in requests for one in each] == list(range(100, 124))
    alone = [
        dataclasses.replace(evaluator, protocol=dataclasses.replace(evaluator.protocol, seed_base=base))
        .measure(paints_with_errors, caption_set)
        .rows[0]
        .value
        for base in (100, 108, 116)
    ]
    row = thrice.measure(paints_with_errors, caption_set).rows[0]
    assert row.value == pytest.approx(mean(alone))
    assert row.sd == pytest.approx(stdev(alone))
    assert row.seeds == 3
    assert row.per_seed == [pytest.approx(alone)]
    assert row.higher_is_better is False


def test_a_mean_over_pictures_carries_the_mean_of_each_caption(evaluator, paints_with_errors):
    """Pictures of odd seeds are wrong: half of each caption's two, and every other of those with one."""
    protocol = dataclasses.replace(evaluator.protocol, seeds=2)
    twice = dataclasses.replace(evaluator, protocol=protocol)
    pairs = dataclasses.replace(protocol.sets[2], metrics=("nearest", "diversity"))
    found = rows_of(twice.measure(paints_with_errors, pairs))
    assert found["r1_colours"].per_caption == [[[0.5] * 3] * 2]
    (by_seed,) = found["diversity_colours"].per_caption
    for own, value in zip(by_seed, found["diversity_colours"].per_seed[0], strict=True):
        assert mean(own) == pytest.approx(value, abs=1e-6)
    assert found["diversity_colours_between_real"].per_caption == []
    found = rows_of(twice.measure(paints_with_errors, protocol.sets[0]))
    assert found["r1_colours"].per_caption == [[[1, 0] * 4] * 2]
    assert found["fd_colours"].per_caption == []


def test_few_pictures_are_refused_for_a_frechet_distance_or_labelled(evaluator, paints):
    first = evaluator.protocol.sets[0]
    with pytest.raises(ValueError, match=r"has 8 pictures for 'frechet', which wants 2048.*few: \[frechet\]"):
        evaluator.measure(paints, dataclasses.replace(first, few=()))
    labels = {row.metric: row.few for row in evaluator.measure(paints, first).rows}
    assert labels == {"fd_colours": True, "r1_colours": False, "r5_colours": False}


def test_every_row_carries_its_cost_and_size(evaluator, paints):
    for row in evaluator.measure(paints, evaluator.protocol.sets[0]).rows:
        assert (row.nfe, row.params, row.seeds) == (16, 12_000_000, 1)
        assert row.seconds > 0


@pytest.mark.parametrize(("captions", "expected"), [(8, 8), (13, 13), (20, 13)])
def test_the_floor_is_of_two_sets_of_real_pictures_that_share_none(evaluator, paints, captions, expected):
    """26 real pictures: sets of more than 13 leave two halves."""
    caption_set = dataclasses.replace(evaluator.protocol.sets[0], captions=captions, metrics=("frechet",))
    drawn = evaluator.reference_set.captions(dataclasses.replace(caption_set, sha256=None), seed=0)
    measured = dataclasses.replace(evaluator, captions={"train": drawn})
    result = measured.measure(paints, caption_set)
    one, other = measured._halves(captions)
    assert len(one) == len(other) == len({*one} | {*other}) / 2 == result.floor_images == expected
    sides = (
        Moments.of(evaluator.reference_set.features["colours"][rows]).gaussian() for rows in (one, other)
    )
    assert result.rows[0].floor == pytest.approx(frechet_distance(*sides).item(), rel=1e-9)


def test_where_nobody_knows_the_right_pictures_as_many_real_ones_stand_beside(evaluator, paints):
    caption_set = CaptionSet(
        name="elsewhere", split=None, captions=None, metrics=("vendi", "frechet"), few=("frechet",)
    )
    metrics = evaluator.metrics | {"vendi": VendiScore(features="colours", dims=12)}

    def measured(times):
        drawn = [one._replace(row=ELSEWHERE) for one in evaluator.captions["train"]] * times
        alike = dataclasses.replace(evaluator, metrics=metrics, captions={"elsewhere": drawn})
        return rows_of(alike.measure(paints, caption_set))

    found = measured(1)
    table = evaluator.reference_set.features["colours"][sorted(evaluator._shuffled()[:8])].double()
    unit = table / table.norm(dim=1, keepdim=True)
    assert found["vendi_colours"].real == pytest.approx(vendi_score(unit.T @ unit).item(), rel=1e-9)
    assert found["fd_colours"].real is None
    assert measured(4)["vendi_colours"].real is None  # 32 pictures, and only 26 real ones
    known = dataclasses.replace(evaluator.protocol.sets[0], metrics=("vendi",))
    (row,) = dataclasses.replace(evaluator, metrics=metrics).measure(paints, known).rows
    assert row.value == pytest.approx(row.real)  # a perfect generator draws the right pictures
    assert row.ceiling not in (None, row.real)


def test_what_is_too_few_for_a_measure_is_told_before_anything_is_drawn(evaluator):
    def refuses(requests):
        raise AssertionError("a picture was drawn")

    density = DensityCoverage(features="colours")
    measured = dataclasses.replace(evaluator, metrics={"density": density})
    caption_set = dataclasses.replace(evaluator.protocol.sets[1], split="val", metrics=("density",))
    few = {"heldout": measured.captions["heldout"][:4]}
    with pytest.raises(ValueError, match="need more than 5 pictures, got 4"):
        dataclasses.replace(measured, captions=few).measure(refuses, caption_set)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [("two red rongs", "did you mean 'rings'"), ("a ring beneath a star", "can't be checked")],
)
def test_a_prompt_that_a_metric_can_not_judge_is_refused_before_the_first_picture(
    evaluator, prompt, sentence
):
    composition = {"composition": Composition(features="colours")}
    sets = [dataclasses.replace(each, metrics=tuple(composition)) for each in evaluator.protocol.sets]
    (*captions, last), protocol = evaluator.captions["heldout"], evaluator.protocol
    prompts = [each._replace(text="two red rings") for each in captions] + [last._replace(text=prompt)]
    measured = dataclasses.replace(
        evaluator,
        metrics=composition,
        protocol=dataclasses.replace(protocol, sets=sets),
        captions={each.name: prompts for each in sets},
    )
    with pytest.raises(UserError, match=sentence):
        measured.check()
