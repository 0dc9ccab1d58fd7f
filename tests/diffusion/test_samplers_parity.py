"""Our samplers and diffusers' schedulers, driven by one network, give the same pictures."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import nn
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.predictions import X0, Edm, Eps, Flow, V
from ldm.diffusion.process import Process, scaled, table_index
from ldm.diffusion.samplers import (
    Churn,
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
from ldm.diffusion.schedules import edm as edm_path
from ldm.diffusion.schedules import noise_ratio, rectified_flow, scaled_linear, zero_terminal_snr

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


def theirs_unscaled(scheduler, steps, **options):
    """The loop of schedulers that work on x / alpha, from the same noise as `theirs`."""
    scheduler.set_timesteps(steps)
    x = START * (scheduler.sigmas[0] ** 2 + 1) ** 0.5
    for t in scheduler.timesteps:
        output = NET(scheduler.scale_model_input(x, t), t.expand(2).float(), None)
        x = scheduler.step(output, t, x, return_dict=False, **options)[0]
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


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler(kind):
    scheduler = EulerDiscreteScheduler(**TABLE, prediction_type=kind, timestep_spacing="trailing")
    reference = theirs_unscaled(scheduler, 20)
    assert_same(ours(euler, scaled_linear(), PREDICTIONS[kind], grids.trailing(20)), reference)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_euler_ancestral(kind):
    generator, noise = same_noise()
    scheduler = EulerAncestralDiscreteScheduler(**TABLE, prediction_type=kind, timestep_spacing="trailing")
    reference = theirs_unscaled(scheduler, 20, generator=generator)
    mine = ours(euler_ancestral, scaled_linear(), PREDICTIONS[kind], grids.trailing(20), noise=noise)
    assert_same(mine, reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_edm_without_churn_is_heun(kind):
    scheduler = HeunDiscreteScheduler(**TABLE, prediction_type=kind, timestep_spacing="trailing")
    reference = theirs_unscaled(scheduler, 20)
    assert_same(ours(edm, scaled_linear(), PREDICTIONS[kind], grids.trailing(20)), reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_heun_is_the_trapezoid_rule_where_the_slope_is_x0(kind):
    """Of y = x / sigma over u = alpha / sigma the flow is dy/du = x0; diffusers has no such one."""
    schedule = scaled_linear()
    process = Process(schedule=schedule, prediction=PREDICTIONS[kind], network_time=table_index)
    denoise, times = process.denoiser(NET, None), grids.trailing(20)[:-1]
    alpha, sigma = schedule(times)
    u, y = alpha / sigma, START.double() / sigma[0]
    for i in range(len(times) - 1):
        slope = denoise(y * sigma[i], times[i])
        ahead = denoise((y + (u[i + 1] - u[i]) * slope) * sigma[i + 1], times[i + 1])
        y = y + (u[i + 1] - u[i]) * (slope + ahead) / 2
    mine = heun(denoise, schedule, START.double(), times)
    assert_same(mine, y * sigma[-1], atol=1e-6)  # the network is float32


def test_euler_with_edm_preconditioning_on_karras_levels():
    scheduler = EDMEulerScheduler(sigma_data=1.0)
    reference = theirs_edm(scheduler, 18)
    process = Process(
        schedule=edm_path, prediction=Edm(sigma_data=1.0), network_time=lambda t: 250 * (t / (1 - t)).log()
    )
    times = grids.karras(18, schedule=edm_path)
    x = START.double() * edm_path(times[0])[1]
    assert_same(euler(process.denoiser(NET, None), edm_path, x, times).float(), reference)


def theirs_edm(scheduler, steps):
    scheduler.set_timesteps(steps)
    x = START * scheduler.sigmas[0]
    for t in scheduler.timesteps:
        output = NET(scheduler.scale_model_input(x, t), 1000 * t.expand(2), None)
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize(("method", "corrected"), [(euler, False), (edm, True)])
def test_churn_is_algorithm_2(method, corrected):
    schedule, (generator, noise) = scaled_linear(), same_noise()
    process = Process(schedule=schedule, prediction=V(), network_time=table_index)
    denoise, times = process.denoiser(NET, None), grids.karras(15, schedule=schedule, sigma_max=10.0)
    churn = Churn(amount=5.0, low=0.05, high=9.0, inflation=1.003)
    x = START.double()
    mine = method(denoise, schedule, x, times, noise=noise, churn=churn)
    x = x / schedule(times[0])[0]
    reference = algorithm_2(denoise, schedule, x, times, churn, generator, corrected=corrected)
    assert_same(mine, reference, atol=1e-6)


def algorithm_2(denoise, schedule, x, times, churn, generator, *, corrected):
    """Karras et al. 2022, Alg. 2, line by line on x / alpha, as k-diffusion has it."""
    levels = noise_ratio(schedule, times)
    dense = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    table = noise_ratio(schedule, dense) ** 2  # nearly linear in t from one entry to the next

    def slope(x, level):
        right = torch.searchsorted(table, level**2)
        share = (level**2 - table[right - 1]) / (table[right] - table[right - 1])
        t = dense[right - 1] + share * (dense[right] - dense[right - 1])
        return (x - denoise(x / (1 + level**2).sqrt(), t)) / level

    for level, following in pairwise(levels):
        gamma = min(churn.amount / 15, 2**0.5 - 1) if churn.low <= level <= churn.high else 0.0
        raised = level * (1 + gamma)
        if gamma > 0:
            fresh = torch.randn(x.shape, generator=generator).to(x) * churn.inflation
            x = x + fresh * (raised**2 - level**2).sqrt()
        d = slope(x, raised)
        ahead = x + (following - raised) * d
        if corrected and following > 0:
            ahead = x + (following - raised) * (d + slope(ahead, following)) / 2
        x = ahead
    return x


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_dpmpp_2m_sde(kind):
    generator, noise = same_noise()
    scheduler = DPMSolverMultistepScheduler(
        **TABLE, prediction_type=kind, timestep_spacing="trailing", algorithm_type="sde-dpmsolver++"
    )
    reference = theirs(scheduler, 20, generator=generator)
    mine = ours(dpmpp_2m_sde, scaled_linear(), PREDICTIONS[kind], grids.trailing(20), noise=noise)
    assert_same(mine, reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("steps", [10, 20])
def test_dpmpp_3m_with_half_the_curvature(kind, steps):
    scheduler = DPMSolverMultistepScheduler(
        **TABLE, prediction_type=kind, timestep_spacing="trailing", solver_order=3
    )
    reference = theirs(scheduler, steps)
    mine = ours(dpmpp_3m, scaled_linear(), PREDICTIONS[kind], grids.trailing(steps), curvature=0.5)
    assert_same(mine, reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(kind, order):
    scheduler = UniPCMultistepScheduler(
        **TABLE, prediction_type=kind, timestep_spacing="trailing", solver_order=order, solver_type="bh2"
    )
    reference = theirs(scheduler, 12)
    mine = ours(unipc, scaled_linear(), PREDICTIONS[kind], grids.trailing(12), order=order)
    assert_same(mine, reference)


def test_pndm():  # with v theirs mixes v of different times, not the noise of the paper's formula
    scheduler = PNDMScheduler(**TABLE, timestep_spacing="leading", skip_prk_steps=True, set_alpha_to_one=True)
    reference = theirs(scheduler, 20)
    assert_same(ours(pndm, scaled_linear(), Eps(), grids.leading(20)), reference)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_lcm(kind):
    generator, noise = same_noise()
    scheduler = LCMScheduler(**TABLE, prediction_type=kind)
    reference = theirs(scheduler, 4, generator=generator)
    times = torch.cat([(scheduler.timesteps.double() + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    # theirs mixes 7e-6 of x into the x0 of its last steps, the boundary of the network that was distilled
    assert_same(ours(lcm, scaled_linear(), PREDICTIONS[kind], times, noise=noise), reference, atol=1e-4)
