"""Facts about guidance's two denoisers as the halves of one batch."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.guidance import apg, cfg, cfg_rescale, interval
from ldm.diffusion.halves import halves
from ldm.diffusion.predictions import Flow
from ldm.diffusion.process import Process
from ldm.diffusion.samplers import ddim, heun
from ldm.diffusion.schedules import rectified_flow

PROCESS = Process(schedule=rectified_flow, prediction=Flow())
PROMPTS, NOTHING = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [0.0]])


class Net:
    """A network that notes how many rows it is given."""

    def __init__(self):
        self.rows = []

    def __call__(self, x, t, context):
        self.rows.append(len(x))
        return torch.tanh(x + context[..., None, None] + (t / 1000)[:, None, None, None])


def start():
    return torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pair(net):
    both = PROCESS.denoiser(net, torch.cat([PROMPTS, NOTHING]))
    return halves(both, alone=PROCESS.denoiser(net, PROMPTS))


@pytest.mark.parametrize("method", [ddim, heun])
@pytest.mark.parametrize("guidance", [partial(cfg, scale=3.0), partial(cfg, scale=1.0)])
def test_halves_draw_what_two_denoisers_draw(method, guidance):
    net = Net()
    apart = guidance(PROCESS.denoiser(net, PROMPTS), PROCESS.denoiser(net, NOTHING))
    joined = guidance(*pair(net))
    expected, found = (method(each, rectified_flow, start(), grids.uniform(6)) for each in (apart, joined))
    assert_close(found, expected, atol=1e-6, rtol=0)  # the network sees float32


def test_both_halves_are_one_call_and_the_prompts_alone_are_half_of_it():
    net = Net()
    within = partial(cfg, scale=3.0)
    guided = interval(*pair(net), within=within, low=0.25, high=0.75)
    ddim(guided, rectified_flow, start(), grids.uniform(4))  # at 1, 0.75, 0.5, 0.25
    assert net.rows == [2, 4, 4, 2]


@pytest.mark.parametrize("guidance", [cfg, cfg_rescale, apg])
def test_every_guidance_asks_for_both_at_once(guidance):
    net = Net()
    ddim(guidance(*pair(net), scale=3.0), rectified_flow, start(), grids.uniform(4))
    assert net.rows == [4] * 4


def test_what_is_kept_is_for_the_same_x_and_t_and_given_once():
    net, x = Net(), start()
    t, later = (torch.tensor(value, dtype=torch.float64) for value in (0.5, 0.4))
    cond, uncond = pair(net)
    for asked in ((x, later), (x.clone(), t)):
        uncond(x, t)
        assert torch.equal(cond(*asked), PROCESS.denoiser(net, PROMPTS)(*asked))
    uncond(x, t)
    net.rows.clear()
    cond(x, t), cond(x, t)
    assert net.rows == [2]
