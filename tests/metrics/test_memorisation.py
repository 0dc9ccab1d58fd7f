import math

import pytest
import torch

from ldm.metrics.neighbours import Memorisation, find_copies


def on_circle(degrees):
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_copies_are_nearer_than_real_pictures_are_to_each_other():
    """Real pictures 10 degrees apart: 0 and 1 degree from one is a copy, 15 degrees is not."""
    real = on_circle(list(range(0, 100, 10)))
    found = find_copies(3 * on_circle([21, 70, 105]), real)
    assert found.generated.tolist() == [1, 0, 2]
    assert found.real.tolist() == [7, 2, 9]
    assert found.copied.tolist() == [True, True, False]
    chords = [2 * math.sin(degrees * math.pi / 360) for degrees in (0, 1, 15)]
    assert found.distance.tolist() == pytest.approx(chords, abs=1e-7)


def test_the_limit_is_a_quantile_of_the_real_distances():
    """One close pair of real pictures, 2 degrees apart, among 50: below the quantile it no longer decides."""
    real = on_circle([*range(0, 343, 7), 9])
    at_three_degrees = on_circle([31])
    assert not find_copies(at_three_degrees, real, quantile=0.01).copied.item()
    assert find_copies(at_three_degrees, real, quantile=0.2).copied.item()


def test_twins_among_real_pictures_let_nothing_count():
    real = on_circle([0, 0, 90, 90, 180, 180])
    assert not find_copies(real, real).copied.any()


def test_share_and_the_rows_to_show(feed):
    real = on_circle(list(range(0, 100, 10)))
    metric = Memorisation(features="net")
    found = feed(metric, real, on_circle([21, 70, 105, 120]), splits=3)
    assert found == {"memorised_net": 0.5}
    assert metric.copies().real.tolist() == [7, 2, 9, 9]


def test_a_picture_that_was_never_seen_was_not_copied(feed):
    """Real pictures 10 degrees apart, of which those below 60 degrees were trained on."""
    metric = Memorisation(features="net")
    metric.seen = torch.arange(6)
    found = feed(metric, on_circle(list(range(0, 100, 10))), on_circle([21, 70, 105, 120]), splits=3)
    assert found == {"memorised_net": 0.25}
    assert metric.copies().real.tolist() == [2, 5, 5, 5]


def test_impossible_options_are_refused():
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        Memorisation(features="net", quantile=1.0)
    with pytest.raises(ValueError, match="at least 2 real pictures"):
        find_copies(on_circle([0]), on_circle([0]))
