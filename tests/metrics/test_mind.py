import pytest
import torch

from ldm.metrics.distances import Mind, mind, orthogonal_directions, transport
from ldm.metrics.frechet import frechet_distance, gaussian_of

DIMS = 8


def normals(count, *, mean=0.0, std=1.0, seed=0):
    rows = torch.randn(count, DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return mean + std * rows


def test_a_shift_costs_its_squared_length_and_a_scaling_what_it_moves():
    """Over a whole group of orthogonal directions both are exact, whatever the pictures."""
    real, shift = normals(50), torch.arange(DIMS, dtype=torch.float64)
    assert mind(real + shift, real, projections=DIMS).item() == pytest.approx(140.0, rel=1e-12)
    centred = real - real.mean(0)
    spread = centred.square().sum(1).mean().item()  # trace of the covariance, not corrected
    assert mind(3 * centred, centred, projections=2 * DIMS).item() == pytest.approx(4 * spread, rel=1e-12)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 2.0), (1.0, 1.0), (0.5, 1.5)])
def test_gaussians_have_the_closed_form_which_is_the_frechet_distance(mean, std):
    """Tolerance: three standard deviations of ten such runs with other seeds."""
    ours, theirs = normals(6000, mean=mean, std=std, seed=1), normals(4000, seed=2)
    expected = DIMS * mean**2 + DIMS * (std - 1) ** 2
    found = mind(ours, theirs, projections=512).item()
    assert found == pytest.approx(expected, rel=0.06)
    assert found == pytest.approx(
        frechet_distance(gaussian_of([ours]), gaussian_of([theirs])).item(), rel=0.06
    )


def test_gaussians_of_two_covariances_cost_what_their_deviations_along_the_directions_differ_by():
    """d E_u (sqrt(u S u) - sqrt(u T u))^2: no Frechet distance, whose directions are the eigenvectors."""
    scale = torch.linspace(0.5, 3, DIMS, dtype=torch.float64)
    directions = torch.cat([*orthogonal_directions(DIMS, 512)], dim=1)
    expected = DIMS * ((scale[:, None] * directions).norm(dim=0) - 1).square().mean()
    found = mind(scale * normals(6000, seed=3), normals(6000, seed=4), projections=512)
    assert found.item() == pytest.approx(expected.item(), rel=0.06)


def test_it_sees_what_mean_and_covariance_do_not():
    signs = torch.tensor([[-1.0], [1.0]], dtype=torch.float64).repeat(2000, DIMS // DIMS)
    ours, theirs = signs, normals(4000, seed=5)[:, :1]
    theirs = (theirs - theirs.mean()) / theirs.std(correction=0)
    assert frechet_distance(gaussian_of([ours]), gaussian_of([theirs])).item() == pytest.approx(0, abs=1e-6)
    # the W_2^2 of a sign and a normal: 2 - 2 E|z| = 2 - 2 sqrt(2 / pi)
    assert mind(ours, theirs, projections=2).item() == pytest.approx(2 - 2 * (2 / torch.pi) ** 0.5, rel=0.02)


def test_sets_of_unequal_size_are_transported_by_their_quantiles():
    real = normals(30)
    assert mind(real.repeat(3, 1), real).item() == pytest.approx(0, abs=1e-20)
    x, y = torch.tensor([[0.0], [6.0]]).double(), torch.tensor([[0.0], [3.0], [6.0]]).double()
    assert transport(x, y).item() == pytest.approx(9 / 3)  # the middle third is 3 away from both halves
    assert transport(y, x).item() == pytest.approx(9 / 3)


def test_name_and_refusals(feed):
    assert set(feed(Mind(features="net"), normals(9), normals(7))) == {"mind_net"}
    with pytest.raises(ValueError, match="needs at least 2 generated pictures, got 1"):
        feed(Mind(features="net"), normals(9), normals(1))
    with pytest.raises(ValueError, match="projections=0 of MIND must be at least 1"):
        Mind(features="net", projections=0)
    with pytest.raises(ValueError, match="'net' have 4 and 8 numbers: both sides must come from one network"):
        feed(Mind(features="net"), normals(9), normals(7)[:, :4])
