"""Every sampler on a table that ends in pure noise, from t = 1: alpha is exactly 0 there."""

import inspect
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids, samplers
from ldm.diffusion.predictions import V
from ldm.diffusion.process import Process, table_index
from ldm.diffusion.samplers import Churn
from ldm.diffusion.schedules import scaled_linear, zero_terminal_snr

SCHEDULE = zero_terminal_snr(scaled_linear())
STEPS = 8
VARIANTS = {
    "ddim": {"eta": 0.5},
    "dpmpp_2m_sde": {"eta": 0.5},
    "dpmpp_3m": {"curvature": 0.5},
    "unipc": {"order": 3},
    "euler": {"churn": Churn(amount=4.0, low=0.05, high=50.0)},
    "edm": {"churn": Churn(amount=4.0, low=0.05, high=50.0)},
}
NAMES = sorted(
    name
    for name in samplers.__all__
    if inspect.isfunction(getattr(samplers, name))
    and "denoise" in inspect.signature(getattr(samplers, name)).parameters
)
CASES = [(name, {}) for name in NAMES] + list(VARIANTS.items())


def normal(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 4, 4, dtype=torch.float64, generator=generator)


def drawn(name, options, denoise, *, seed=0):
    """From the noise of a seed, with the same fresh noise whatever the seed."""
    generator = torch.Generator().manual_seed(11)
    fresh = partial(torch.randn, generator=generator, dtype=torch.float64)
    method, times = getattr(samplers, name), grids.trailing(STEPS)
    return method(denoise, SCHEDULE, normal(seed), times, noise=lambda x: fresh(x.shape), **options)


def network(x, t, context):
    """A small smooth function of x and time."""
    return torch.tanh(x.roll(1, dims=1) + (t / 1000)[:, None, None, None])


def test_all_samplers_are_here():
    assert set(VARIANTS) < set(NAMES)
    assert len(NAMES) == 12


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_denoiser_that_knows_the_picture_is_followed_to_it(name, options):
    picture = normal(5)
    assert_close(drawn(name, options, lambda x, t: picture), picture, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_first_call_sees_the_noise_as_it_is_and_the_last_leaves_none(name, options):
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return torch.zeros_like(x)

    assert (
        drawn(name, options, denoise).abs().max() < 1e-12
    )  # nothing of the picture, and of the noise sigma 0
    (x, first), (_, last) = seen[0], seen[-1]
    assert first == 1
    assert SCHEDULE(first)[0] == 0
    assert torch.equal(x, normal(0))
    assert 0 < last < 1


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_network_that_predicts_v_draws_a_finite_picture_that_the_noise_decides(name, options):
    denoise = Process(schedule=SCHEDULE, prediction=V(), network_time=table_index).denoiser(network, None)
    one, other = (drawn(name, options, denoise, seed=seed) for seed in (0, 1))
    assert one.isfinite().all()
    assert 0.05 < one.std() < 5
    assert not torch.equal(one, other)
