import numpy as np
import pytest
import torch

from ldm.metrics.neighbours import (
    ClippedDensityCoverage,
    balls_around,
    clipped_density_coverage,
    density_coverage,
    expected_coverage,
    radii,
)

DIMS, COUNT = 8, 1000


def normals(count, *, seed=0):
    return torch.randn(count, DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def spoiled(share, *, count=COUNT, seed=1):
    """Pictures of the real law of which a share lies far away."""
    rows = normals(count, seed=seed)
    rows[: round(share * count)] += 100
    return rows


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_both_fall_linearly_with_the_share_of_bad_pictures(share):
    """Means over six seeds. Tolerance: three deviations of such a mean; one of 500 deviates by 0.05."""
    seeds = range(6)
    found = [
        clipped_density_coverage(spoiled(share, count=500, seed=100 + seed), normals(500, seed=seed))
        for seed in seeds
    ]
    for name in ("clipped_density", "clipped_coverage"):
        mean = sum(each[name].item() for each in found) / len(found)
        assert mean == pytest.approx(1 - share, abs=0.06)


def test_coverage_falls_linearly_where_the_plain_one_does_not():
    plain = density_coverage(spoiled(0.5), normals(COUNT))["coverage"].item()
    assert plain > 0.75  # one picture in a ball is enough, and half of the pictures leave few balls empty


def test_outliers_in_the_reference_set_accept_no_bad_pictures():
    """A tenth of the real pictures is strewn far and wide; pictures between them are no good ones.

    The plain density counts the outliers' balls, as wide as the space between them.
    """
    real, strewn = normals(COUNT), 60 * normals(COUNT // 10, seed=2)
    bad = 20 * normals(COUNT, seed=3)
    with_outliers = torch.cat([real, strewn])
    assert density_coverage(bad, with_outliers)["density"] > 0.5
    assert clipped_density_coverage(bad, with_outliers)["clipped_density"] < 0.02
    clean = clipped_density_coverage(spoiled(0.3), real)
    noisy = clipped_density_coverage(spoiled(0.3), with_outliers)
    # a tenth more balls, which hold nothing, raise the median by a twentieth of the ranks: some density
    assert noisy["clipped_density"].item() == pytest.approx(clean["clipped_density"].item(), abs=0.1)
    # a tenth of the real pictures can't be covered: at most that much is lost of the share
    assert noisy["clipped_coverage"].item() == pytest.approx(clean["clipped_coverage"].item(), abs=0.15)


def test_each_ball_holds_its_neighbours_however_distances_are_rounded():
    """The ball that reaches to the k-th neighbour has this one on its surface."""
    rows = torch.randn(300, 1280, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inside = balls_around(rows, rows, radii(rows, neighbours=5))
    assert inside.sum() == 300 * (5 + 1)  # and its own centre


def test_pictures_at_one_place_are_good_and_cover_nothing():
    real = normals(COUNT)
    found = clipped_density_coverage(real[real.norm(dim=1).argmin()].expand(COUNT, DIMS), real)
    assert found["clipped_density"] == 1
    assert found["clipped_coverage"] < 0.05


def test_expected_coverage_is_that_of_sampled_balls():
    """The mass of a ball with k of n - 1 points in it, and how many of m others fall in, by simulation."""
    random = np.random.default_rng(0)
    real, good, neighbours = 40, 25, 5
    sampled = np.sort(random.random((20_000, real - 1)))[:, neighbours - 1]  # uniform: mass is the radius
    inside = random.binomial(good, sampled)
    expected = expected_coverage(generated=30, real=real, neighbours=neighbours)
    assert expected[good] == pytest.approx(np.minimum(inside / neighbours, 1).mean(), abs=0.01)
    assert expected[0] == 0
    assert (np.diff(expected) > 0).all()


def test_names_and_refusals(feed):
    found = feed(ClippedDensityCoverage(features="net"), normals(9), normals(7))
    assert set(found) == {"clipped_density_net", "clipped_coverage_net"}
    with pytest.raises(ValueError, match="k=5 nearest neighbours need more than 5 pictures, got 5"):
        clipped_density_coverage(normals(9), normals(5))
    with pytest.raises(ValueError, match="by k=5 pictures needs at least 5 generated ones, got 4"):
        clipped_density_coverage(normals(4), normals(9))
    with pytest.raises(ValueError, match="neighbours=0 must be at least 1"):
        ClippedDensityCoverage(features="net", neighbours=0)
