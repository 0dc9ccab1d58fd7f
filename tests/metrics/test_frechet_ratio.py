import pytest
import torch

from ldm.metrics.distances import FrechetRatio, frechet_ratio

DIMS = 8


def normals(count, *, mean=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return mean + torch.randn(count, DIMS, dtype=torch.float64, generator=generator)


def test_as_good_as_real_is_one_at_any_count():
    """Mean of 40 fresh sets; the Frechet distance itself falls by ten from 30 to 300 pictures."""
    for count in (30, 300):
        found = [
            frechet_ratio(normals(count, seed=2 * k + 1), normals(2 * count, seed=2 * k)) for k in range(40)
        ]
        # between two distances of one law; a quarter is three deviations of such a mean
        assert torch.stack(found).log().mean().item() == pytest.approx(0, abs=0.25)


def test_a_shift_counts_as_often_as_it_is_larger_than_the_floor():
    real = normals(4000)
    one, other = (frechet_ratio(normals(1000, mean=mean, seed=3), real) for mean in (0.5, 1.0))
    assert one > 20
    assert (other / one).item() == pytest.approx(4, rel=0.1)  # |m|^2, the floor beside it being small


def test_of_the_reference_set_itself_it_is_below_one():
    real = normals(200)
    assert frechet_ratio(real, real) < 1


def test_more_generated_pictures_than_half_of_the_real_ones_are_cut_to_that():
    assert torch.isfinite(frechet_ratio(normals(500, seed=1), normals(40)))


def test_name_and_refusals(feed):
    assert set(feed(FrechetRatio(features="net"), normals(9), normals(7))) == {"fd_ratio_net"}
    with pytest.raises(ValueError, match="needs at least 4 real pictures, got 3"):
        feed(FrechetRatio(features="net"), normals(3), normals(9))
    with pytest.raises(ValueError, match="needs at least 2 generated pictures, got 1"):
        feed(FrechetRatio(features="net"), normals(9), normals(1))
    with pytest.raises(ValueError, match="have the same features, so that the distance to divide by is 0"):
        frechet_ratio(normals(9), torch.ones(8, DIMS))
