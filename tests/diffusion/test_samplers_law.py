"""Facts about samplers that draw noise, without a sample: of Gaussian data they draw a known Gaussian.

The best denoiser is affine in x, so what is drawn is affine in the first noise and in every fresh one. Each
is let in alone, a row each: how far a row ends from the one without any is its share of the deviation.
"""

import math
from functools import partial

import pytest
import torch

from ldm.diffusion import grids
from ldm.diffusion.samplers import Churn, ddim, ddpm, dpmpp_2m_sde, edm, euler, euler_ancestral, lcm
from ldm.diffusion.schedules import cosine, rectified_flow, scaled_linear, zero_terminal_snr
from tests.diffusion.gaussian import MEAN, STD, best_denoiser, quarter_circle, spread

SMOOTH = {"quarter_circle": quarter_circle, "rectified_flow": rectified_flow}
SCHEDULES = SMOOTH | {"table": scaled_linear(), "zero_snr": zero_terminal_snr(cosine())}
CHURN = Churn(amount=2.0)


def law(sampler, schedule, denoise, times):
    """Mean and standard deviation of what a sampler makes of an x that is right at the first time."""
    alone = torch.eye(len(times) + 1, dtype=torch.float64)[..., None]  # at most one draw a step
    first, *fresh = alone[1:]
    coming = iter(fresh)
    start = schedule(times[0])[0] * MEAN + spread(schedule, times[0]) * first
    ends = sampler(denoise, schedule, start, times, noise=lambda x: next(coming))[:, 0]
    return ends[0].item(), (ends[1:] - ends[0]).norm().item()


def error(sampler, schedule, steps):
    """Distance of the standard deviation from the right one, after even steps from 0.9 to 0.1."""
    times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    _, std = law(sampler, schedule, best_denoiser(schedule), times)
    return abs(std - spread(schedule, times[-1]).item())


@pytest.mark.parametrize("path", SMOOTH)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ddpm, 1),
        (euler_ancestral, 1),
        (partial(ddim, eta=0.5), 1),
        (dpmpp_2m_sde, 2),
        (partial(dpmpp_2m_sde, eta=0.5), 2),
        (partial(euler, churn=CHURN), 1),
        (partial(edm, churn=CHURN), 2),
    ],
)
def test_the_law_of_what_is_drawn_comes_nearer_with_the_order_of_the_sampler(sampler, order, path):
    coarse, fine = (error(sampler, SMOOTH[path], steps) for steps in (50, 100))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("path", SCHEDULES)
def test_with_a_consistency_function_lcm_draws_the_data_in_any_number_of_steps(path, steps):
    """The function that takes every point of the flow to its end (Song et al. 2023, Def. 1)."""
    schedule = SCHEDULES[path]

    def end_of_flow(x, t):
        return MEAN + STD * (x - schedule(t)[0] * MEAN) / spread(schedule, t)

    mean, std = law(lcm, schedule, end_of_flow, grids.uniform(steps))
    assert mean == pytest.approx(MEAN, abs=1e-12)
    assert std == pytest.approx(STD, abs=1e-12)
