"""Every yaml of conf/process, sampler, grid and guidance builds, and what it builds works together."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from ldm.construct import construct
from ldm.diffusion import grids
from ldm.diffusion.guidance import apart

CONF = Path(__file__).parents[2] / "conf"


def names(group):
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def build(group, name):
    node = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"), resolve=True)
    node.pop("weak", None)  # a guidance's second bundle, which whoever opens the first one opens
    return construct(node)


def net(x, t, context, early=1.0):  # a DiT's option, with which internal guidance mixes its heads
    return torch.tanh(x) * context * early


def fresh(x):
    return torch.zeros_like(x)


@pytest.mark.parametrize("name", names("process"))
def test_a_process_trains_and_samples(name):
    process = build("process", name)
    x0, noise = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    uniform = torch.tensor([0.1, 0.5, 0.9])
    assert process.loss(net, x0, 1.0, noise=noise, uniform=uniform).isfinite().all()
    sampling = build("sampler", "dpmpp_2m")
    assert sampling(process.denoiser(net, 1.0), process.schedule, noise.double()).isfinite().all()


@pytest.mark.parametrize("guidance", names("guidance"))
@pytest.mark.parametrize("sampler", names("sampler"))
def test_a_sampler_follows_every_guidance(sampler, guidance):
    process, sampling = build("process", "zero_snr"), replace(build("sampler", sampler), steps=6)
    cond, uncond = process.denoiser(net, 1.0), process.denoiser(net, 0.5)
    denoise = build("guidance", guidance)(cond, apart(cond, uncond))
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert sampling(denoise, process.schedule, x, noise=fresh).isfinite().all()


@pytest.mark.parametrize("grid", names("grid"))
@pytest.mark.parametrize("sampler", names("sampler"))
def test_a_sampler_follows_every_grid(sampler, grid):
    process = build("process", "zero_snr")
    sampling = replace(build("sampler", sampler), grid=build("grid", grid), steps=6)
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = sampling(process.denoiser(net, 1.0), process.schedule, x, noise=fresh)
    assert drawn.isfinite().all()
    assert len(sampling.times(process.schedule)) == 7


def test_every_grid_has_a_yaml():
    own = {name for name, value in inspect.getmembers(grids, inspect.isfunction) if not name.startswith("_")}
    assert set(names("grid")) == own - {"shifted", "from_strength", "noise_ratio", "time_of_ratio"}


def test_the_length_of_a_table_is_said_once():
    node = OmegaConf.load(CONF / "process" / "zero_snr.yaml")
    node.schedule.table.num_steps = 50
    process = construct(OmegaConf.to_container(node, resolve=True))
    assert process.network_time(torch.ones(1)).item() == 49
