"""Facts about samplers on Gaussian data, where the best denoiser and the flow are known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.samplers import Sampling, ddim, ddpm, dpmpp_2m, heun
from ldm.diffusion.schedules import cosine, rectified_flow, scaled_linear, zero_terminal_snr

MEAN, STD = 0.7, 0.4  # of the data
ONE = torch.ones((), dtype=torch.float64)


def quarter_circle(t):
    """A smooth variance-preserving path whose signal is exactly 0 at t = 1."""
    return torch.sin((1 - t) * math.pi / 2), torch.sin(t * math.pi / 2)


SCHEDULES = {
    "quarter_circle": quarter_circle,
    "rectified_flow": rectified_flow,
    "zero_snr_table": zero_terminal_snr(scaled_linear()),
    "zero_snr_cosine": zero_terminal_snr(cosine()),
    "table": scaled_linear(),
}
SMOOTH = ["quarter_circle", "rectified_flow"]
SAMPLERS = {"ddim": ddim, "heun": heun, "dpmpp_2m": dpmpp_2m}
FRESH = {"ddpm": ddpm, "ddim_half": partial(ddim, eta=0.5)}


def spread(schedule, t):
    """Standard deviation of x_t."""
    alpha, sigma = schedule(t)
    return (alpha**2 * STD**2 + sigma**2).sqrt()


def best_denoiser(schedule):
    """E[x0 | x_t] for data N(MEAN, STD^2)."""

    def denoise(x, t):
        alpha, _ = schedule(t)
        return MEAN + alpha * STD**2 / spread(schedule, t) ** 2 * (x - alpha * MEAN)

    return denoise


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def start(schedule, z):
    """x at t = 1 of the pictures MEAN + STD * z, which the flow carries there along constant z."""
    return schedule(ONE)[0] * MEAN + spread(schedule, ONE) * z


def error(sampler, schedule, steps, *, end=0.0):
    """Largest distance from the flow at time `end`, after even steps from t = 1."""
    z = normal(8, 3, 2, 2)
    times = torch.linspace(1, end, steps + 1, dtype=torch.float64)
    x = sampler(best_denoiser(schedule), schedule, start(schedule, z), times)
    alpha, _ = schedule(times[-1])
    return (x - (alpha * MEAN + spread(schedule, times[-1]) * z)).abs().max().item()


@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (heun, 2), (dpmpp_2m, 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order, path):
    coarse, fine = (error(sampler, SCHEDULES[path], steps, end=0.1) for steps in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_the_second_order_holds_to_time_zero_but_for_a_logarithm(sampler, path):
    coarse, fine = (error(sampler, SCHEDULES[path], steps) for steps in (200, 400))
    slope = math.log2(coarse / fine)
    assert slope + math.log2(math.log(400) / math.log(200)) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_flow_from_pure_noise_ends_at_the_right_picture(name, path):
    assert error(SAMPLERS[name], SCHEDULES[path], 200) < 0.04


@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("name", FRESH)
def test_fresh_noise_ends_at_the_right_distribution(name, path):
    schedule, generator = SCHEDULES[path], torch.Generator().manual_seed(1)
    x = start(schedule, normal(20_000, 1))
    x = FRESH[name](
        best_denoiser(schedule),
        schedule,
        x,
        grids.uniform(500),
        noise=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator),
    )
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(STD, rel=0.03)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_very_few_steps_from_no_signal_to_no_noise_stay_finite(name, path, steps):
    assert error(SAMPLERS[name], SCHEDULES[path], steps) < 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_denoiser_that_knows_the_picture_is_followed_exactly(name):
    picture = normal(2, 3, 4, 4)
    for schedule in SCHEDULES.values():
        x = SAMPLERS[name](lambda x, t: picture, schedule, normal(2, 3, 4, 4, seed=1), grids.uniform(5))
        assert_close(x, picture, atol=1e-12, rtol=0)


def test_ddim_is_euler_on_the_velocity_of_a_rectified_flow():
    denoise, x = best_denoiser(rectified_flow), normal(4, 3)
    times = grids.uniform(12)
    euler = x
    for t, s in pairwise(times):
        euler = euler + (s - t) * (euler - denoise(euler, t)) / t
    assert_close(ddim(denoise, rectified_flow, x, times), euler, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("sampler", "calls"), [(ddim, 10), (heun, 19), (dpmpp_2m, 10)])
def test_calls_of_the_network_per_picture(sampler, calls):
    seen = []

    def denoise(x, t):
        seen.append(t)
        return best_denoiser(rectified_flow)(x, t)

    sampler(denoise, rectified_flow, normal(2, 3), grids.uniform(10))
    assert len(seen) == calls
    assert all(t.ndim == 0 and t > 0 for t in seen)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_float32_state_stays_float32_and_near_the_float64_one(name):
    for schedule in SCHEDULES.values():
        run = partial(SAMPLERS[name], best_denoiser(schedule), schedule, times=grids.uniform(20))
        exact, rounded = run(x=normal(4, 3)), run(x=normal(4, 3).float())
        assert rounded.dtype == torch.float32
        assert_close(rounded.double(), exact, atol=1e-5, rtol=0)


def test_a_picture_does_not_depend_on_its_batch():
    for sampler in SAMPLERS.values():
        run = partial(sampler, best_denoiser(rectified_flow), rectified_flow, times=grids.uniform(6))
        x = normal(5, 3, 4, 4)
        assert torch.equal(run(x=x)[3:4], run(x=x[3:4]))


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_outside_its_range_is_refused(eta):
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        ddim(best_denoiser(rectified_flow), rectified_flow, normal(1, 1), grids.uniform(2), eta=eta)


def test_fresh_noise_has_to_be_given():
    with pytest.raises(ValueError, match="pass noise="):
        ddpm(best_denoiser(rectified_flow), rectified_flow, normal(1, 1), grids.uniform(2))


def test_sampling_is_its_method_on_its_grid():
    x, denoise = normal(2, 3), best_denoiser(rectified_flow)
    sampling = Sampling(method=heun, grid=partial(grids.uniform, shift=2.0), steps=5)
    expected = heun(denoise, rectified_flow, x, grids.uniform(5, shift=2.0))
    assert torch.equal(sampling(denoise, rectified_flow, x), expected)
