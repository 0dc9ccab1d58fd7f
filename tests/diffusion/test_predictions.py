"""Facts about predictions: each is undone exactly, and min-SNR weights mean the same in x0 for all."""

import pytest
import torch
from diffusers import EDMEulerScheduler
from torch.testing import assert_close

from ldm.diffusion.predictions import X0, Edm, Eps, Flow, V, min_snr, unweighted
from ldm.diffusion.schedules import cosine, edm, rectified_flow, scaled_linear, zero_terminal_snr

PREDICTIONS = [Eps(), X0(), V(), Flow(), Edm(), Edm(sigma_data=0.5)]
SCHEDULES = {
    "table": scaled_linear(),
    "zero_snr": zero_terminal_snr(scaled_linear()),
    "cosine": cosine(),
    "flow": rectified_flow,
    "edm": edm,
}
T = torch.tensor([0.001, 0.02, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
GAMMA = 5.0


def every(*, end=False):
    """(alpha, sigma) of every schedule at times from near 0 to near 1, or to 1 itself."""
    t = torch.cat([T, torch.ones(1, dtype=T.dtype)]) if end else T
    return [schedule(t) for schedule in SCHEDULES.values()]


def snr(alpha, sigma):
    return (alpha / sigma) ** 2


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_of_the_target_is_x0_on_every_path(prediction):
    x0, eps = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for alpha, sigma in every():
        target = prediction.target(x0, eps, alpha, sigma)
        assert_close(prediction.x0(target, alpha * x0 + sigma * eps, alpha, sigma), x0, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prediction", [X0(), V(), Flow(), Edm(sigma_data=0.5)])
def test_x0_is_known_from_pure_noise_for_all_but_eps(prediction):
    x0, eps = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for alpha, sigma in every(end=True):
        target = prediction.target(x0, eps, alpha, sigma)
        assert_close(prediction.x0(target, alpha * x0 + sigma * eps, alpha, sigma), x0, atol=1e-10, rtol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_gain_is_the_slope_of_x0_in_the_output(prediction):
    x = torch.linspace(-1, 1, 6, dtype=torch.float64)
    for alpha, sigma in every():
        slope = prediction.x0(x + 1, x, alpha, sigma) - prediction.x0(x, x, alpha, sigma)
        assert_close(slope.abs(), prediction.gain(alpha, sigma), atol=0, rtol=1e-8)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_weighs_the_error_of_x0_alike_for_every_prediction(prediction):
    for alpha, sigma in every():
        weight = min_snr(prediction, alpha, sigma, gamma=GAMMA)
        assert_close(weight / prediction.gain(alpha, sigma) ** 2, snr(alpha, sigma).clamp(max=GAMMA))


def test_min_snr_has_the_published_form_on_variance_preserving_paths():
    for alpha, sigma in (cosine()(T), scaled_linear()(T)):
        ratio = snr(alpha, sigma)
        capped = ratio.clamp(max=GAMMA)
        assert_close(min_snr(Eps(), alpha, sigma, gamma=GAMMA), capped / ratio)
        assert_close(min_snr(X0(), alpha, sigma, gamma=GAMMA), capped)
        assert_close(min_snr(V(), alpha, sigma, gamma=GAMMA), capped / (ratio + 1))


def test_min_snr_of_the_flow_on_the_straight_path():
    alpha, sigma = rectified_flow(T)
    assert_close(min_snr(Flow(), alpha, sigma, gamma=GAMMA), snr(alpha, sigma).clamp(max=GAMMA) * T**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_min_snr_is_finite_and_right_at_both_ends(dtype):
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    for schedule in (rectified_flow, zero_terminal_snr(cosine())):
        alpha, sigma = schedule(ends)
        assert min_snr(X0(), alpha, sigma, gamma=GAMMA).tolist() == [GAMMA, 0]
        assert min_snr(V(), alpha, sigma, gamma=GAMMA).tolist() == [0, 0]
        assert min_snr(Flow(), alpha, sigma, gamma=GAMMA).tolist() == [0, 0]
    alpha, sigma = scaled_linear()(ends)
    assert_close(min_snr(Eps(), alpha, sigma, gamma=GAMMA), torch.tensor([0.0, 1.0], dtype=dtype))


def test_unweighted_is_one():
    assert torch.equal(unweighted(V(), T, T), torch.ones_like(T))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_edm_preconditioning_is_the_one_of_diffusers(sigma_data):
    theirs = EDMEulerScheduler(sigma_data=sigma_data)
    x, output = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for level in torch.tensor([0.002, 0.5, 3.0, 80.0], dtype=torch.float64):
        mine = Edm(sigma_data=sigma_data).x0(output, x, torch.ones_like(level), level)
        assert_close(mine, theirs.precondition_outputs(x, output, level))


def test_edm_of_unit_variance_is_v_turned_round_and_its_path_is_c_in():
    x0, eps = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    alpha, sigma = edm(T)
    assert_close(Edm().target(x0, eps, alpha, sigma), -V().target(x0, eps, alpha, sigma))
    level = T / (1 - T)
    c_in = EDMEulerScheduler(sigma_data=1.0)._get_conditioning_c_in(level)
    assert_close(alpha * x0 + sigma * eps, c_in * (x0 + level * eps))


@pytest.mark.parametrize("sigma_data", [0.5, 1.0, 2.0])
def test_edm_asks_for_an_output_of_unit_variance_at_every_time(sigma_data):
    x0, eps = torch.randn(2, 100_000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for alpha, sigma in every(end=True):
        target = Edm(sigma_data=sigma_data).target(sigma_data * x0, eps, alpha, sigma)
        assert_close(target.std(dim=0), torch.ones_like(alpha), atol=0.01, rtol=0)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, float("nan")])
def test_a_standard_deviation_that_is_none_is_refused(sigma_data):
    with pytest.raises(ValueError, match="must be above 0"):
        Edm(sigma_data=sigma_data)
