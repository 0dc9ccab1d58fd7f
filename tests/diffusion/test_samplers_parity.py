"""Our samplers and diffusers' schedulers, driven by one network, give the same pictures."""

from functools import partial

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.predictions import X0, Eps, Flow, V
from ldm.diffusion.process import Process, scaled, table_index
from ldm.diffusion.samplers import ddim, ddpm, dpmpp_2m
from ldm.diffusion.schedules import rectified_flow, scaled_linear, zero_terminal_snr

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = {"epsilon": Eps(), "v_prediction": V(), "sample": X0()}


class Net(nn.Module):
    """A small network that depends on x and on time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.into, self.out = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x, t, context):
        return self.out(torch.tanh(self.into(x) + (t / 1000)[:, None, None, None]))


NET = Net().requires_grad_(False)
START = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))


def theirs(scheduler, steps, **options):
    scheduler.set_timesteps(steps)
    x = START
    for t in scheduler.timesteps:
        x = scheduler.step(NET(x, t.expand(2).float(), None), t, x, return_dict=False, **options)[0]
    return x


def ours(sampler, schedule, prediction, times, **options):
    process = Process(schedule=schedule, prediction=prediction, network_time=table_index)
    denoise = process.denoiser(NET, None)
    return sampler(denoise, schedule, START.double(), times, **options).float()


def same_noise():
    """The generator for their step and the function for ours, which draw one and the same sequence."""
    generator = torch.Generator().manual_seed(11)
    return torch.Generator().manual_seed(11), lambda x: torch.randn(x.shape, generator=generator).to(x)


def assert_same(mine, reference, *, atol=1e-5):
    """Equal to atol of the largest element: pictures of a random network are not of size 1."""
    scale = reference.abs().max()
    assert_close(mine / scale, reference / scale, atol=atol, rtol=0)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddim(kind, eta):
    generator, noise = same_noise()
    scheduler = DDIMScheduler(
        **TABLE, clip_sample=False, prediction_type=kind, timestep_spacing="leading", steps_offset=1
    )
    reference = theirs(scheduler, 20, eta=eta, generator=generator)
    times = grids.leading(20, offset=1)
    assert_same(ours(ddim, scaled_linear(), PREDICTIONS[kind], times, eta=eta, noise=noise), reference)


@pytest.mark.parametrize("eta", [0.0, 0.6])  # at eta = 1 theirs is NaN
def test_ddim_from_pure_noise_with_zero_terminal_snr(eta):
    generator, noise = same_noise()
    scheduler = DDIMScheduler(
        **TABLE,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    reference = theirs(scheduler, 25, eta=eta, generator=generator)
    schedule = zero_terminal_snr(scaled_linear())
    assert_same(ours(ddim, schedule, V(), grids.trailing(25), eta=eta, noise=noise), reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("steps", "atol"), [(25, 1e-5), (1000, 1e-4)])  # their table and state are float32
def test_ddpm(kind, steps, atol):
    generator, noise = same_noise()
    scheduler = DDPMScheduler(**TABLE, clip_sample=False, prediction_type=kind, timestep_spacing="trailing")
    reference = theirs(scheduler, steps, generator=generator)
    mine = ours(ddpm, scaled_linear(), PREDICTIONS[kind], grids.trailing(steps), noise=noise)
    assert_same(mine, reference, atol=atol)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 20, 50])
def test_dpmpp_2m(kind, steps):
    scheduler = DPMSolverMultistepScheduler(**TABLE, prediction_type=kind, timestep_spacing="trailing")
    reference = theirs(scheduler, steps)
    assert_same(ours(dpmpp_2m, scaled_linear(), PREDICTIONS[kind], grids.trailing(steps)), reference)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_ddim_on_a_rectified_flow_is_flow_matching_euler(shift):
    scheduler = FlowMatchEulerDiscreteScheduler()
    times = grids.uniform(20, shift=shift)
    scheduler.set_timesteps(sigmas=times[:-1].tolist())
    x = START
    for t in scheduler.timesteps:
        x = scheduler.step(NET(x, t.expand(2).float(), None), t, x, return_dict=False)[0]
    process = Process(schedule=rectified_flow, prediction=Flow(), network_time=partial(scaled, scale=1000.0))
    mine = ddim(process.denoiser(NET, None), rectified_flow, START.double(), times)
    assert_same(mine.float(), x)
