"""Facts about samplers on Gaussian data, where the best denoiser and the flow are known in closed form."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.samplers import (
    Churn,
    Sampling,
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    euler_ancestral,
    heun,
    lcm,
    pndm,
    unipc,
)
from ldm.diffusion.schedules import cosine, noise_ratio, rectified_flow, scaled_linear, zero_terminal_snr
from tests.diffusion.gaussian import MEAN, STD, best_denoiser, quarter_circle, spread

ONE = torch.ones((), dtype=torch.float64)
SCHEDULES = {
    "quarter_circle": quarter_circle,
    "rectified_flow": rectified_flow,
    "zero_snr_table": zero_terminal_snr(scaled_linear()),
    "zero_snr_cosine": zero_terminal_snr(cosine()),
    "table": scaled_linear(),
}
SMOOTH = ["quarter_circle", "rectified_flow"]
SAMPLERS = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "edm": edm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde_0": partial(dpmpp_2m_sde, eta=0.0),
    "dpmpp_3m": dpmpp_3m,
    "unipc": unipc,
    "unipc_3": partial(unipc, order=3),
    "pndm": pndm,
}
CHURN = Churn(amount=40.0, low=0.05, high=50.0)
LONG = pytest.mark.usefixtures("unchecked_shapes")  # few steps of each are checked below and in test_conf.py
FRESH = {
    "ddpm": ddpm,
    "ddim_half": partial(ddim, eta=0.5),
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_2m_sde_half": partial(dpmpp_2m_sde, eta=0.5),
}


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def start(schedule, z):
    """x at t = 1 of the pictures MEAN + STD * z, which the flow carries there along constant z."""
    return schedule(ONE)[0] * MEAN + spread(schedule, ONE) * z


def error(sampler, schedule, steps, *, end=0.0):
    """Largest distance from the flow at time `end`, after even steps from t = 1."""
    return distance(sampler, schedule, torch.linspace(1, end, steps + 1, dtype=torch.float64))


def distance(sampler, schedule, times):
    """Largest distance from the flow at the last time, when x is right at the first."""
    z = normal(8, 3, 2, 2)
    first, last = (schedule(t)[0] * MEAN + spread(schedule, t) * z for t in (times[0], times[-1]))
    return (sampler(best_denoiser(schedule), schedule, first, times) - last).abs().max().item()


def error_between(sampler, schedule, steps):
    """Distance from t = 0.9 to 0.1, whose first and last step, of lower order, are the square of the rest.

    So short, they leave the order of the steps between to be seen.
    """
    short = 1 / steps**2
    even = torch.linspace(0.9 - short, 0.1 + short, steps - 1, dtype=torch.float64)
    return distance(sampler, schedule, torch.cat([even[:1] + short, even, even[-1:] - short]))


ORDERS = [  # sampler, order, steps from which the order shows to 0.2
    (dpmpp_2m, 2, 100),
    (dpmpp_3m, 3, 300),
    (partial(dpmpp_3m, curvature=0.5), 2, 100),
    (partial(unipc, order=1), 2, 100),
    (unipc, 3, 100),
    (partial(unipc, order=3), 4, 300),
]


@LONG
@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize(("sampler", "order", "steps"), ORDERS)
def test_the_order_of_a_multistep_method_shows_between_short_first_and_last_steps(
    sampler, order, steps, path
):
    coarse, fine = (error_between(sampler, SCHEDULES[path], number) for number in (steps, 2 * steps))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


@LONG
@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize(
    ("sampler", "order"), [(ddim, 1), (euler, 1), (heun, 2), (edm, 2), (dpmpp_2m, 2), (unipc, 2)]
)
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order, path):
    coarse, fine = (error(sampler, SCHEDULES[path], steps, end=0.1) for steps in (50, 100))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@LONG
@pytest.mark.parametrize("path", SMOOTH)
def test_pndm_is_of_second_order_though_its_formula_is_of_fourth(path):
    times = [torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64) for steps in (100, 200)]
    coarse, fine = (distance(pndm, SCHEDULES[path], grid) for grid in times)
    assert math.log2(coarse / fine) == pytest.approx(2, abs=0.1)


@LONG
@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize("sampler", [heun, dpmpp_2m])
def test_the_second_order_holds_to_time_zero_but_for_a_logarithm(sampler, path):
    coarse, fine = (error(sampler, SCHEDULES[path], steps) for steps in (200, 400))
    slope = math.log2(coarse / fine)
    assert slope + math.log2(math.log(400) / math.log(200)) == pytest.approx(2, abs=0.2)


@LONG
@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_flow_from_pure_noise_ends_at_the_right_picture(name, path):
    assert error(SAMPLERS[name], SCHEDULES[path], 200) < 0.04


@LONG
@pytest.mark.parametrize("path", SCHEDULES)
@pytest.mark.parametrize("name", FRESH)
def test_fresh_noise_ends_at_the_right_distribution(name, path):
    schedule, generator = SCHEDULES[path], torch.Generator().manual_seed(1)
    x = start(schedule, normal(5_000, 1))
    x = FRESH[name](
        best_denoiser(schedule),
        schedule,
        x,
        grids.uniform(500),
        noise=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator),
    )
    assert x.mean().item() == pytest.approx(MEAN, abs=0.015)
    assert x.std().item() == pytest.approx(STD, rel=0.03)


@LONG
@pytest.mark.parametrize("path", SCHEDULES)
def test_churn_ends_at_the_right_distribution(path):
    schedule, generator = SCHEDULES[path], torch.Generator().manual_seed(1)
    times = grids.karras(60, schedule=schedule)
    x = schedule(times[0])[0] * MEAN + spread(schedule, times[0]) * normal(20_000, 1)
    x = edm(
        best_denoiser(schedule),
        schedule,
        x,
        times,
        noise=lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator),
        churn=Churn(amount=20.0, low=0.05, high=50.0),
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


CALLS = [
    (ddim, 10),
    (euler, 10),
    (heun, 19),
    (edm, 18),  # from pure noise its first step is Euler's
    (dpmpp_2m, 10),
    (dpmpp_3m, 10),
    (unipc, 10),
    (pndm, 10),
]


@pytest.mark.parametrize(("sampler", "calls"), CALLS)
def test_calls_of_the_network_per_picture(sampler, calls):
    seen = []

    def denoise(x, t):
        seen.append(t)
        return best_denoiser(rectified_flow)(x, t)

    sampler(denoise, rectified_flow, normal(2, 3), grids.uniform(10))
    assert len(seen) == calls
    assert all(t.ndim == 0 and t > 0 for t in seen)


@LONG
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


@pytest.mark.parametrize("sampler", [ddpm, euler_ancestral, dpmpp_2m_sde, lcm, partial(edm, churn=CHURN)])
def test_fresh_noise_has_to_be_given(sampler):
    with pytest.raises(ValueError, match="pass noise="):
        sampler(best_denoiser(rectified_flow), rectified_flow, normal(1, 1), grids.uniform(3))


def test_what_a_sampler_cannot_do_is_refused():
    run = (best_denoiser(rectified_flow), rectified_flow, normal(1, 1), grids.uniform(2))
    with pytest.raises(ValueError, match=r"eta=1\.5 is outside \[0, 1\]"):
        dpmpp_2m_sde(*run, eta=1.5)
    with pytest.raises(ValueError, match="order=4 of UniPC is not 1, 2 or 3"):
        unipc(*run, order=4)
    with pytest.raises(ValueError, match=r"amount=-1\.0 is negative"):
        Churn(amount=-1.0)
    with pytest.raises(ValueError, match=r"from 2\.0 to 1\.0 is empty"):
        Churn(amount=1.0, low=2.0, high=1.0)


def test_samplers_of_two_names_are_one():
    run = {"denoise": best_denoiser(rectified_flow), "schedule": rectified_flow, "times": grids.uniform(9)}
    x = normal(4, 3)
    assert torch.equal(euler(x=x, **run), ddim(x=x, **run))
    assert torch.equal(edm(x=x, churn=Churn(amount=0.0), noise=torch.zeros_like, **run), edm(x=x, **run))
    assert_close(dpmpp_2m_sde(x=x, eta=0.0, **run), dpmpp_2m(x=x, **run), atol=1e-14, rtol=0)
    draws = [normal(4, 3, seed=seed) for seed in range(9)]
    ancestral, reverse = iter(draws), iter(draws)
    constant = {"denoise": lambda x, t: torch.full_like(x, MEAN), "schedule": rectified_flow}
    assert_close(
        ddpm(x=x, times=grids.uniform(9), noise=lambda x: next(ancestral), **constant),
        dpmpp_2m_sde(x=x, times=grids.uniform(9), noise=lambda x: next(reverse), **constant),
        atol=1e-14,
        rtol=0,
    )


def test_churn_leaves_x_at_the_noise_of_its_new_time():
    schedule, t = cosine(), torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = schedule(t)
    x = alpha * MEAN + sigma * normal(200_000, 1)
    churned, raised = CHURN(x, t, schedule, noise=lambda x: normal(*x.shape, seed=5), steps=200)
    assert noise_ratio(schedule, raised) == pytest.approx(1.2 * noise_ratio(schedule, t).item())
    assert churned.mean().item() == pytest.approx((schedule(raised)[0] * MEAN).item(), abs=0.01)
    assert churned.std().item() == pytest.approx(schedule(raised)[1].item(), rel=0.01)


@pytest.mark.parametrize("t", [1.0, 0.01])
def test_churn_leaves_pure_noise_and_what_is_outside_its_interval_alone(t):
    x, t = normal(3, 2), torch.tensor(t, dtype=torch.float64)
    churned, raised = CHURN(x, t, rectified_flow, noise=torch.zeros_like, steps=10)
    assert churned is x
    assert raised is t


def test_lcm_puts_new_noise_on_each_x0():
    draws = [normal(2, 3, seed=seed) for seed in (1, 2)]
    fresh, times = iter(draws), grids.uniform(3)
    x = normal(2, 3)
    mine = lcm(lambda x, t: x * t, rectified_flow, x, times, noise=lambda x: next(fresh))
    for t, s, noise in zip(times, times[1:], [*draws, torch.zeros(2, 3)], strict=False):
        x = (1 - s) * t * x + s * noise
    assert_close(mine, x, atol=1e-14, rtol=0)


def test_sampling_is_its_method_on_its_grid():
    x, denoise = normal(2, 3), best_denoiser(rectified_flow)
    sampling = Sampling(method=heun, grid=partial(grids.uniform, shift=2.0), steps=5)
    expected = heun(denoise, rectified_flow, x, grids.uniform(5, shift=2.0))
    assert torch.equal(sampling(denoise, rectified_flow, x), expected)
