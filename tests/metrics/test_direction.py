"""Every metric says in its reading and to programs alike which direction is better."""

import pytest
from omegaconf import OmegaConf

from ldm.config import CONF, build
from ldm.metrics.composition import Composition
from ldm.metrics.distances import KernelDistance
from ldm.metrics.diversity import InceptionScore
from ldm.metrics.reconstruction import Reconstruction

WORDS = {"higher is better": True, "lower is better": False}


def said(reading):
    """The direction that a sentence names."""
    return next((better for words, better in WORDS.items() if words in reading), None)


@pytest.mark.parametrize("path", sorted((CONF / "metric").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_metric_says_in_words_which_direction_is_better(path):
    (metric,) = build(OmegaConf.load(path)).values()
    assert said(metric.reading) is metric.higher_is_better


def test_results_that_bound_or_describe_another_have_no_direction():
    composition, kernel, inception = Composition(), KernelDistance(features="inception"), InceptionScore()
    found = {name: composition.direction(f"composition_{name}") for name in ("count", "count_low", "chance")}
    assert found == {"count": True, "count_low": None, "chance": None}
    assert composition.direction("composition_unreadable") is False
    assert [kernel.direction(name) for name in ("kid", "kid_sd")] == [False, None]
    assert [inception.direction(name) for name in ("is_mean", "is_sd")] == [True, None]


def test_the_round_trip_has_a_direction_for_each_number():
    metric = Reconstruction()
    assert metric.directions == {"psnr": True, "ssim": True}
    assert said(metric.readings["psnr"]) is True
