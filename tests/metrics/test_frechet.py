import pytest
import torch

from ldm.metrics.frechet import FrechetDistance, Gaussian, Moments, frechet_distance
from ldm.metrics.picture_metric import Observed


def observed(features):
    numbers = torch.arange(len(features))
    return Observed(features={"net": features}, rows=numbers, captions=numbers)


def random_covariance(dims, seed):
    factor = torch.randn(dims, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T


def distance(real, generated, splits):
    metric = FrechetDistance(features="net", dims=real.shape[1])
    for side, is_real in ((real, True), (generated, False)):
        for part in side.split(splits):
            metric.update(observed(part), real=is_real)
    return metric.compute()["fd_net"]


def test_distance_of_gaussians_with_commuting_covariances():
    rotation = torch.linalg.qr(random_covariance(6, 0)).Q
    first, second = torch.arange(1.0, 7).double(), torch.tensor([4.0, 1, 9, 2, 0.5, 3]).double()
    means = torch.zeros(6).double(), torch.full((6,), 0.5).double()
    found = frechet_distance(
        Gaussian(means[0], rotation * first @ rotation.T), Gaussian(means[1], rotation * second @ rotation.T)
    )
    expected = 6 * 0.25 + (first.sqrt() - second.sqrt()).square().sum()
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


def test_distance_matches_the_matrix_square_root():
    first, second = random_covariance(12, 1), random_covariance(12, 2)
    mean = torch.zeros(12).double()
    eigenvalues = torch.linalg.eigvals(first @ second)
    expected = first.trace() + second.trace() - 2 * eigenvalues.sqrt().real.sum()
    found = frechet_distance(Gaussian(mean, first), Gaussian(mean, second))
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("count", [5, 40])
def test_a_set_is_at_distance_zero_from_itself_with_few_pictures_or_many(count):
    features = torch.randn(count, 16, generator=torch.Generator().manual_seed(3))
    assert distance(features, features, splits=4) == pytest.approx(0, abs=1e-10)


def test_features_that_never_move_add_their_distance_and_nothing_else():
    """Few pictures and 1,200 dead features of 1,280: matrices that LAPACK has failed over."""
    alive = torch.rand(6, 80, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    other = torch.rand(6, 80, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    dead = torch.zeros(6, 1200).double()
    widened = distance(torch.cat([alive, dead], 1), torch.cat([other, dead + 0.1], 1), splits=6)
    torch.testing.assert_close(widened, distance(alive, other, splits=6) + 1200 * 0.01, atol=1e-9, rtol=0)
    assert distance(dead, dead + 0.1, splits=6) == pytest.approx(12)


def test_a_shift_of_every_picture_is_the_squared_length_of_the_shift():
    features = torch.randn(7, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert distance(features, features + 0.25, splits=7) == pytest.approx(16 * 0.25**2, abs=1e-9)


def test_distance_depends_neither_on_order_nor_on_batches():
    generator = torch.Generator().manual_seed(5)
    real, generated = torch.randn(60, 8, generator=generator), 2 * torch.randn(45, 8, generator=generator)
    whole = distance(real, generated, splits=100)
    shuffled = distance(real[torch.randperm(60)], generated.flip(0), splits=7)
    torch.testing.assert_close(shuffled, whole, atol=1e-10, rtol=0)


def test_moments_of_parts_add_up_to_those_of_the_whole():
    features = torch.randn(20, 4, generator=torch.Generator().manual_seed(6))
    parts = [Moments.of(part) for part in features.split(7)]
    added = Moments(*(sum(column) for column in zip(*parts, strict=True)))
    torch.testing.assert_close(
        added.gaussian().covariance, torch.cov(features.double().T), atol=1e-12, rtol=0
    )
    torch.testing.assert_close(added.gaussian().mean, features.double().mean(0), atol=1e-12, rtol=0)


def test_one_picture_is_refused():
    with pytest.raises(ValueError, match="at least 2 pictures on each side, got 1"):
        distance(torch.randn(1, 4), torch.randn(5, 4), splits=5)


def test_features_that_are_not_finite_are_refused():
    metric = FrechetDistance(features="net", dims=4)
    with pytest.raises(ValueError, match="NaN or infinity"):
        metric.update(observed(torch.full((3, 4), torch.nan)), real=True)


def test_other_dims_and_missing_features_are_refused():
    with pytest.raises(ValueError, match=r"have 3 numbers, metric\.dims is 4"):
        FrechetDistance(features="net", dims=4).update(observed(torch.zeros(2, 3)), real=True)
    with pytest.raises(ValueError, match="no features 'other'"):
        FrechetDistance(features="other", dims=4).update(observed(torch.zeros(2, 4)), real=True)
