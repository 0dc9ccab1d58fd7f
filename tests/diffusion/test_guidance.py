"""Facts about guidance."""

from functools import partial

import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch.testing import assert_close

from ldm.diffusion.grids import uniform
from ldm.diffusion.guidance import apart, apg, autoguidance, cfg, cfg_rescale, conditional, interval
from ldm.diffusion.predictions import X0, Eps, Flow, V
from ldm.diffusion.samplers import dpmpp_2m, heun
from ldm.diffusion.schedules import cosine, rectified_flow

T = torch.tensor(0.5, dtype=torch.float64)
X = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cond(x, t):
    return torch.sin(3 * x) + 0.5


def uncond(x, t):
    return 0.4 * x - 0.1


PAIR = apart(cond, uncond)


def never(x, t):
    raise AssertionError("the unconditional denoiser was called")


def test_guidance_extrapolates_from_the_unconditional_to_the_conditional():
    expected = uncond(X, T) + 3 * (cond(X, T) - uncond(X, T))
    assert_close(cfg(cond, PAIR, scale=3.0)(X, T), expected)


def test_scale_zero_is_unconditional():
    assert_close(cfg(cond, PAIR, scale=0.0)(X, T), uncond(X, T))


@pytest.mark.parametrize(
    "guidance",
    [
        conditional,
        partial(cfg, scale=1.0),
        partial(cfg_rescale, scale=1.0, phi=0.7),
        partial(apg, scale=1.0),
        partial(autoguidance, scale=1.0),
    ],
)
def test_no_guidance_is_conditional_and_calls_nothing_else(guidance):
    assert torch.equal(guidance(cond, never)(X, T), cond(X, T))


@pytest.mark.parametrize("prediction", [Eps(), X0(), V(), Flow()])
def test_mixing_x0_is_mixing_what_the_network_predicts(prediction):
    alpha, sigma = cosine()(T)
    outputs = [draw(X, T) for draw in (cond, uncond)]
    mixed = prediction.x0(outputs[1].lerp(outputs[0], 3.0), X, alpha, sigma)
    told = [lambda x, t, output=output: prediction.x0(output, x, alpha, sigma) for output in outputs]
    guided = cfg(told[0], apart(*told), scale=3.0)
    assert_close(guided(X, T), mixed)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_is_the_one_of_diffusers(phi):
    guided = cfg(cond, PAIR, scale=5.0)(X, T)
    theirs = rescale_noise_cfg(guided, cond(X, T), guidance_rescale=phi)
    assert_close(cfg_rescale(cond, PAIR, scale=5.0, phi=phi)(X, T), theirs)


def test_full_rescale_has_the_contrast_of_the_conditional_picture_whatever_its_batch():
    guided = cfg_rescale(cond, PAIR, scale=8.0, phi=1.0)
    assert_close(guided(X, T).std(dim=(1, 2, 3)), cond(X, T).std(dim=(1, 2, 3)))
    assert_close(guided(X, T)[1:2], guided(X[1:2], T))


def test_an_interval_guides_inside_and_calls_only_the_conditional_outside():
    inside = interval(cond, PAIR, within=partial(cfg, scale=4.0), low=0.2, high=0.8)
    outside = interval(cond, never, within=partial(cfg, scale=4.0), low=0.2, high=0.8)
    for t in (0.8, 0.5, 0.21):
        assert_close(inside(X, torch.tensor(t, dtype=torch.float64)), cfg(cond, PAIR, scale=4.0)(X, T))
    for t in (1.0, 0.81, 0.2, 0.0):
        assert torch.equal(outside(X, torch.tensor(t, dtype=torch.float64)), cond(X, T))


def test_an_empty_interval_is_refused():
    with pytest.raises(ValueError, match=r"from 0\.8 to 0\.2 is empty"):
        interval(cond, PAIR, within=conditional, low=0.8, high=0.2)


@pytest.mark.parametrize(("parallel", "threshold"), [(0.0, None), (0.3, 2.5), (1.0, 0.5)])
def test_apg_is_the_one_of_diffusers_over_several_calls(parallel, threshold):
    mine = apg(cond, PAIR, scale=4.0, parallel=parallel, momentum=-0.5, threshold=threshold)
    buffer = MomentumBuffer(-0.5)
    for x in (X, X / 2, X / 4):
        theirs = normalized_guidance(
            cond(x, T), uncond(x, T), 3.0, buffer, parallel, threshold or 0.0, use_original_formulation=True
        )
        assert_close(mine(x, T), theirs)


def test_apg_without_its_three_changes_is_cfg():
    guided = apg(cond, PAIR, scale=4.0, parallel=1.0, momentum=0.0)
    for x in (X, X / 2):
        assert_close(guided(x, T), cfg(cond, PAIR, scale=4.0)(x, T))


def test_apg_leaves_the_part_along_the_conditional_picture_as_it_is():
    change = apg(cond, PAIR, scale=9.0)(X, T) - cond(X, T)
    assert_close((change * cond(X, T)).sum(dim=(1, 2, 3)), torch.zeros(3, dtype=X.dtype), atol=1e-9, rtol=0)


def test_the_change_of_apg_has_at_most_the_asked_norm():
    change = apg(cond, PAIR, scale=2.0, parallel=1.0, threshold=0.7)(X, T) - cond(X, T)
    assert_close(change.flatten(1).norm(dim=1), torch.full((3,), 0.7, dtype=X.dtype))


def test_a_new_apg_has_no_memory_of_another_ones_calls():
    guidance = partial(apg, scale=3.0)
    first = guidance(cond, PAIR)
    once = first(X, T)
    assert not torch.equal(first(X, T), once)
    assert torch.equal(guidance(cond, PAIR)(X, T), once)


def test_an_apg_threshold_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"threshold=0\.0 of guidance must be above 0"):
        apg(cond, PAIR, scale=3.0, threshold=0.0)


def test_autoguidance_is_the_formula_of_cfg_with_the_weak_denoiser():
    guided = autoguidance(cond, PAIR, scale=2.5)(X, T)
    assert torch.equal(guided, cfg(cond, PAIR, scale=2.5)(X, T))
    # D = w * D1 + (1 - w) * D0
    assert_close(guided, 2.5 * cond(X, T) - 1.5 * uncond(X, T))


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 7.5])
def test_autoguidance_by_an_equal_network_changes_no_sample(scale):
    # data N(0.7, 0.4^2), whose best denoiser guides itself
    def denoise(x, t):
        alpha, sigma = rectified_flow(t)
        return 0.7 + alpha * 0.16 / (alpha**2 * 0.16 + sigma**2) * (x - alpha * 0.7)

    times = uniform(10)
    alone = dpmpp_2m(denoise, rectified_flow, X, times)
    guided = autoguidance(denoise, apart(denoise, denoise), scale=scale)
    assert_close(dpmpp_2m(guided, rectified_flow, X, times), alone)


def test_autoguidance_away_from_a_wider_gaussian_has_a_closed_form():
    # of linear denoisers the logarithm of x moves by the mean of both: std_strong^w * std_weak^(1 - w)
    def best(std):
        def denoise(x, t):
            alpha, sigma = rectified_flow(t)
            return alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x

        return denoise

    pair = apart(best(0.4), best(0.8))
    guided = heun(autoguidance(best(0.4), pair, scale=2.0), rectified_flow, X, uniform(200))
    assert_close(guided, 0.4**2 / 0.8 * X, rtol=5e-3, atol=0)
