"""Kernel distances: unbiased, torch-fidelity's to rounding, and CMMD in closed form."""

import math
from itertools import permutations, product

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from ldm.metrics.distances import (
    Cmmd,
    KernelDistance,
    cmmd,
    gaussian,
    kernel_distances,
    polynomial,
    unbiased_mmd,
)


def draw(count, dims, seed=0, dtype=torch.float32):
    return torch.randn(count, dims, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_equals_the_sum_over_pairs():
    x, y = draw(5, 3, dtype=torch.float64), draw(4, 3, seed=1, dtype=torch.float64)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within_x = torch.stack([kernel(a, b) for a, b in permutations(x, 2)]).mean()
    within_y = torch.stack([kernel(a, b) for a, b in permutations(y, 2)]).mean()
    between = torch.stack([kernel(a, b) for a, b in product(x, y)]).mean()
    found = kernel_distances(x, y, subset_size=None)
    torch.testing.assert_close(found[0], within_x + within_y - 2 * between, atol=1e-12, rtol=0)


def test_equals_torch_fidelity_subset_by_subset():
    generated, real = draw(60, 16), 0.5 + draw(45, 16, seed=1)
    theirs = kid_features_to_metric(generated, real, kid_subsets=20, kid_subset_size=30, verbose=False)
    found = kernel_distances(generated, real, subsets=20, subset_size=30)
    assert found.mean().item() == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert found.std(correction=0).item() == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)


def test_unbiased_over_a_thousand_draws():
    """Two sets of one law, 8 pictures a side: the mean is 0 within 3 standard errors.

    Rows are 2 signs drawn by a coin, so the kernel is 8 for equal rows and 1/4 * (8 + 1 + 1 + 0) on average.
    Pairs of a row with itself would put 2 / 8 of the difference on top: the estimate would show it.
    """
    coins = torch.randint(0, 2, (1000, 2, 8, 2), generator=torch.Generator().manual_seed(2))
    sides = (2.0 * coins.double() - 1).transpose(0, 1).split(125, dim=1)  # 125 draws are subsets of one set
    eights = (torch.arange(1000) // 8 == torch.arange(125)[:, None],) * 2
    found = torch.cat(
        [unbiased_mmd(*side.flatten(1, 2), kernel=polynomial, subsets=eights) for side in sides]
    )
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert error < 2 / 8 * (8 - (8 + 1 + 1 + 0) / 4) / 3


def test_expectation_for_two_known_laws():
    """All rows of one side are e, of the other -e: k(e, e) + k(-e, -e) - 2 k(e, -e)."""
    e = torch.ones(6, 4)
    assert kernel_distances(e, -e, subset_size=None).item() == pytest.approx(8 + 8 - 0)


def test_names_and_deviation(feed):
    both = draw(30, 4), draw(30, 4, seed=1)
    assert set(feed(KernelDistance(features="net", subsets=5, subset_size=10), *both)) == {
        "kd_net",
        "kd_sd_net",
    }
    assert set(feed(KernelDistance(features="net", subset_size=None), *both)) == {"kd_net"}


def test_fewer_pictures_than_a_subset_are_refused():
    with pytest.raises(ValueError, match="at least 1000 on each side, got 20: set subset_size=null"):
        kernel_distances(draw(20, 4), draw(3000, 4))
    with pytest.raises(ValueError, match="at least 2 on each side, got 1"):
        kernel_distances(draw(1, 4), draw(9, 4), subset_size=None)


def test_cmmd_of_two_opposite_pictures_in_closed_form(feed):
    one = torch.tensor([[3.0, 0.0]]).expand(4, 2)
    expected = 1000 * (1 + 1 - 2 * math.exp(-4 / (2 * 10**2)))
    assert cmmd(one, -one).item() == pytest.approx(expected)
    assert feed(Cmmd(features="net"), one, -one) == {"cmmd_net": pytest.approx(expected)}
    assert cmmd(draw(9, 5), draw(9, 5)).item() == pytest.approx(0, abs=1e-9)


def test_the_gaussian_kernel_is_its_formula():
    x, y = draw(3, 5, dtype=torch.float64), draw(2, 5, seed=1, dtype=torch.float64)
    expected = torch.exp(-(torch.cdist(x, y) ** 2) / (2 * 1.5**2))
    torch.testing.assert_close(gaussian(x, y, sigma=1.5), expected)
