"""Facts about averages that are put together after a training."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm.checkpoints.power_average import Averages, Profile, decay, exponent_of, shares


def followed(values: torch.Tensor, length: float) -> torch.Tensor:
    """The average after each step, as a training keeps it; float64."""
    exponent, averages = exponent_of(length), [values[0]]
    for step, value in enumerate(values[1:], start=2):
        averages.append(torch.lerp(averages[-1], value, 1 - decay(step, exponent)))
    return torch.stack(averages)


@pytest.mark.parametrize(("length", "exponent"), [(0.05, 16.97), (0.10, 6.94)])
def test_exponents_are_those_of_the_paper(length, exponent):
    assert round(exponent_of(length), 2) == exponent


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25])
def test_a_length_is_the_spread_of_the_steps_that_count(length):
    exponent, steps = exponent_of(length), np.linspace(0, 1, 1_000_001)
    weights = steps**exponent / (steps**exponent).sum()
    mean = (weights * steps).sum()
    assert np.sqrt((weights * (steps - mean) ** 2).sum()) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("length", [0, -0.1, 0.2887, 1, float("nan")])
def test_lengths_that_no_average_has_are_refused(length):
    with pytest.raises(ValueError, match=r"must lie above 0 and below 0\.2887"):
        exponent_of(length)


def test_an_average_weighs_steps_by_their_power():
    steps, exponent = torch.arange(1, 2001, dtype=torch.float64), exponent_of(0.1)
    kept = torch.tensor([decay(step, exponent) for step in range(1, 2001)], dtype=torch.float64)
    later = torch.cat([kept[1:].flip(0).cumprod(0).flip(0), torch.ones(1, dtype=torch.float64)])
    weights = (1 - kept) * later
    assert_close(weights.sum(), torch.tensor(1.0, dtype=torch.float64))
    ideal = steps**exponent / (steps**exponent).sum()
    assert (weights - ideal).abs().sum() < 0.01  # the power is of a continuous time


@pytest.mark.parametrize(("one", "other"), [((800, 0.05), (1000, 0.1)), ((1000, 0.2), (1000, 0.02))])
def test_the_overlap_is_the_integral_of_the_product(one, other):
    profiles = Profile(*one), Profile(*other)
    times = np.linspace(0, 1000, 1_000_001)
    product = np.ones_like(times)
    for profile in profiles:
        shape = np.where(times <= profile.step, (times / profile.step) ** profile.exponent, 0)
        product = product * shape * (profile.exponent + 1) / profile.step
    assert profiles[0].overlap(profiles[1]) == pytest.approx(np.trapezoid(product, times), rel=1e-3)
    assert profiles[0].overlap(profiles[1]) == profiles[1].overlap(profiles[0])


def test_an_average_that_was_kept_is_taken_as_it_is():
    kept = [Profile(step, length) for step in (200, 400, 600) for length in (0.05, 0.1)]
    np.testing.assert_allclose(shares(kept, Profile(400, 0.1)), np.eye(6)[3], atol=1e-6)


@pytest.mark.parametrize("length", [0.03, 0.07, 0.14])
def test_another_length_is_met_from_what_was_written(tmp_path, length):
    torch.manual_seed(0)
    walk = torch.randn(2000, 300, dtype=torch.float64).cumsum(0)
    averages = Averages(tmp_path)
    for short in (0.05, 0.1):
        for step in range(125, 2001, 125):
            averages.write(Profile(step, short), {"w": followed(walk, short)[step - 1]})
    made, wanted = averages.average(Profile(2000, length))["w"], followed(walk, length)[-1].float()
    nearest = min((followed(walk, short)[-1].float() - wanted).norm() for short in (0.05, 0.1))
    assert (made - wanted).norm() < nearest / 10


def test_steps_after_the_wanted_one_do_not_count(tmp_path):
    averages = Averages(tmp_path)
    for step in (10, 20, 30):
        for length in (0.05, 0.1):
            averages.write(Profile(step, length), {"w": torch.full((2,), float(step))})
    assert list(averages.kept(until=20)) == [Profile(s, n) for s in (10, 20) for n in (0.05, 0.1)]
    assert_close(averages.average(Profile(20, 0.05))["w"], torch.full((2,), 20.0))


def test_without_averages_the_way_to_them_is_told(tmp_path):
    with pytest.raises(
        ValueError, match=r"no averages up to step 5: train with callbacks\.averages\.lengths"
    ):
        Averages(tmp_path / "averages").average(Profile(5, 0.1))


def test_a_damaged_average_is_named(tmp_path):
    averages = Averages(tmp_path)
    path = averages.write(Profile(10, 0.1), {"w": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{path.name} is not a whole average"):
        averages.average(Profile(10, 0.1))


def test_an_average_of_which_a_bit_has_changed_is_named(tmp_path):
    averages = Averages(tmp_path)
    averages.write(Profile(5, 0.1), {"w": torch.ones(100)})
    path = averages.write(Profile(10, 0.1), {"w": torch.ones(100), "b": torch.tensor(1.0)})
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)
    assert_close(averages.average(Profile(5, 0.1))["w"], torch.ones(100))
    with pytest.raises(
        ValueError, match=rf"{path.name} is not a whole average \(the checksum of w differs\)"
    ):
        averages.average(Profile(10, 0.1))


def test_an_average_is_written_over_and_leaves_nothing_beside_it(tmp_path):
    averages = Averages(tmp_path)
    averages.write(Profile(10, 0.1), {"w": torch.zeros(3)})
    path = averages.write(Profile(10, 0.1), {"w": torch.ones(3)})
    assert list(tmp_path.iterdir()) == [path]
    assert_close(averages.average(Profile(10, 0.1))["w"], torch.ones(3))
