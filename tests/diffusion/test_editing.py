"""Facts about starting from a picture and keeping a part of it, where the flow is known in closed form."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.grids import from_strength
from ldm.diffusion.guidance import keeping
from ldm.diffusion.samplers import (
    ddim,
    ddpm,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_3m,
    edm,
    euler,
    heun,
    lcm,
    pndm,
    unipc,
)
from ldm.diffusion.schedules import cosine, noised, rectified_flow, scaled_linear, zero_terminal_snr
from ldm.diffusion.schedules import edm as edm_path
from tests.diffusion.gaussian import MEAN, STD, best_denoiser

SCHEDULES = {
    "flow": rectified_flow,
    "edm": edm_path,
    "table": scaled_linear(),
    "zero_snr_cosine": zero_terminal_snr(cosine()),
}
SAMPLERS = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "edm": edm,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": dpmpp_3m,
    "unipc": partial(unipc, order=3),
    "pndm": pndm,
}
FRESH = {"ddpm": ddpm, "dpmpp_2m_sde": dpmpp_2m_sde, "lcm": lcm}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


KNOWN = normal(2, 1, 4, 4, seed=1)
LEFT = (torch.arange(4) < 2).expand(2, 1, 4, 4)  # what is redrawn


@pytest.mark.parametrize(
    ("strength", "first"), [(1.0, 1.0), (0.97, 1.0), (0.64, 0.6), (0.1, 0.1), (0.04, 0.0), (0.0, 0.0)]
)
def test_a_grid_is_cut_at_the_time_nearest_to_the_strength(strength, first):
    whole = grids.uniform(10)
    rest = from_strength(whole, strength)
    assert rest[0].item() == pytest.approx(first)
    assert torch.equal(rest, whole[-len(rest) :])


def test_a_grid_that_starts_below_1_is_whole_at_strength_1():
    whole = grids.leading(20)
    assert torch.equal(from_strength(whole, 1.0), whole)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        from_strength(grids.uniform(4), strength)


@pytest.mark.parametrize("name", [*SAMPLERS, *FRESH])
def test_from_the_last_time_nothing_is_sampled(name):
    times = from_strength(grids.uniform(8), 0.0)
    sampler = (SAMPLERS | FRESH)[name]
    ends = sampler(best_denoiser(rectified_flow), rectified_flow, KNOWN, times, noise=torch.ones_like)
    assert torch.equal(ends, KNOWN)


def error(sampler, schedule, *, steps):
    """Largest distance from the flow's end of what is sampled from strength 0.6."""
    times = from_strength(grids.uniform(steps), 0.6)
    start = noised(KNOWN, normal(*KNOWN.shape), times[0], schedule)
    alpha, sigma = schedule(times[0])
    # the flow of a Gaussian keeps (x_t - alpha * mean) / (standard deviation of x_t)
    flow = MEAN + STD * (start - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2).sqrt()
    return (sampler(best_denoiser(schedule), schedule, start, times) - flow).abs().max()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_from_the_middle_twice_as_many_steps_of_ddim_come_nearer_to_the_flow(schedule):
    assert error(ddim, schedule, steps=60) < 0.6 * error(ddim, schedule, steps=30)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", ["heun", "edm", "dpmpp_2m", "dpmpp_3m", "unipc", "pndm"])
def test_from_the_middle_samplers_of_higher_order_come_nearer_to_the_flow_than_ddim(name, schedule):
    assert error(SAMPLERS[name], schedule, steps=40) < error(ddim, schedule, steps=40)


@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_a_cut_grid_is_the_end_of_the_whole_ones_way(name):
    whole, seen = grids.uniform(10), {}

    def watched(x, t):
        seen[t.item()] = x
        return best_denoiser(rectified_flow)(x, t)

    ends = SAMPLERS[name](watched, rectified_flow, normal(*KNOWN.shape), whole)
    rest = from_strength(whole, 0.6)
    again = SAMPLERS[name](best_denoiser(rectified_flow), rectified_flow, seen[rest[0].item()], rest)
    assert torch.equal(again, ends)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_known_is_at_every_step_the_known_latent_with_its_own_noise(name, schedule):
    noise, seen = normal(*KNOWN.shape), []
    times = from_strength(grids.uniform(12), 0.9)

    def watched(x, t):
        seen.append((x - noised(KNOWN, noise, t, schedule))[~LEFT].abs().max().item())
        return best_denoiser(schedule)(x, t)

    ends = SAMPLERS[name](
        keeping(watched, KNOWN, LEFT), schedule, noised(KNOWN, noise, times[0], schedule), times
    )
    assert max(seen) < 1e-9
    assert_close(ends[~LEFT], KNOWN[~LEFT], rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", FRESH)
def test_a_sampler_that_draws_noise_leaves_the_known_latent_with_noise_of_variance_1(name):
    known, seen = torch.full((400, 1, 4, 4), 1.5, dtype=torch.float64), []
    left, times = torch.zeros_like(known, dtype=torch.bool), grids.uniform(6)
    generator = torch.Generator().manual_seed(3)

    def watched(x, t):
        alpha, sigma = rectified_flow(t)
        seen.append((x - alpha * known) / sigma)
        return x

    def fresh(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    start = noised(known, normal(*known.shape), times[0], rectified_flow)
    ends = FRESH[name](keeping(watched, known, left), rectified_flow, start, times, noise=fresh)
    assert_close(ends, known)
    count = known.numel()
    for noise in seen:  # four standard errors
        assert noise.mean().abs() < 4 / count**0.5
        assert (noise.var() - 1).abs() < 4 * (2 / count) ** 0.5


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_is_redrawn_is_what_it_would_be_without_a_mask(name):
    # numbers that don't look at each other: the known ones can't change the redrawn ones
    denoise, times = best_denoiser(rectified_flow), grids.uniform(12)
    start = noised(KNOWN, normal(*KNOWN.shape), times[0], rectified_flow)
    free = SAMPLERS[name](denoise, rectified_flow, start, times)
    kept = SAMPLERS[name](keeping(denoise, KNOWN, LEFT), rectified_flow, start, times)
    assert_close(kept[LEFT], free[LEFT])
    assert not torch.allclose(kept[~LEFT], free[~LEFT])


def test_with_nothing_known_the_denoiser_is_the_same():
    denoise, everything = best_denoiser(rectified_flow), torch.ones_like(LEFT)
    t = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(keeping(denoise, KNOWN, everything)(KNOWN, t), denoise(KNOWN, t))
