"""Facts about guidance's two denoisers in one network call."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm.diffusion import grids
from ldm.diffusion.guidance import apart, apg, batched, cfg, cfg_rescale, interval
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


def guided_by(guidance, net):
    """A guidance of a network, which answers both prompts in one call."""
    both = PROCESS.denoiser(net, torch.cat([PROMPTS, NOTHING]))
    return guidance(PROCESS.denoiser(net, PROMPTS), batched(both))


@pytest.mark.parametrize("method", [ddim, heun])
@pytest.mark.parametrize("guidance", [partial(cfg, scale=3.0), partial(cfg, scale=1.0)])
def test_one_call_gives_what_two_denoisers_give(method, guidance):
    net = Net()
    cond, uncond = (PROCESS.denoiser(net, context) for context in (PROMPTS, NOTHING))
    guides = (guidance(cond, apart(cond, uncond)), guided_by(guidance, net))
    expected, found = (method(each, rectified_flow, start(), grids.uniform(6)) for each in guides)
    assert_close(found, expected, atol=1e-6, rtol=0)  # the network sees float32


def test_both_prompts_are_one_call_and_the_prompts_alone_are_half_of_it():
    net = Net()
    guided = guided_by(partial(interval, within=partial(cfg, scale=3.0), low=0.25, high=0.75), net)
    ddim(guided, rectified_flow, start(), grids.uniform(4))  # at 1, 0.75, 0.5, 0.25
    assert net.rows == [2, 4, 4, 2]


@pytest.mark.parametrize("guidance", [cfg, cfg_rescale, apg])
def test_every_guidance_asks_for_both_at_once(guidance):
    net = Net()
    ddim(guided_by(partial(guidance, scale=3.0), net), rectified_flow, start(), grids.uniform(4))
    assert net.rows == [4] * 4


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["conditional first", "unconditional first"])
def test_the_order_in_which_a_guidance_uses_the_two_does_not_change_its_cost(order):
    def own(cond, pair):
        def denoise(x, t):
            both, weights = pair(x, t), (3.0, -2.0)
            return sum(weights[which] * both[which] for which in order)

        return denoise

    net = Net()
    found = ddim(guided_by(own, net), rectified_flow, start(), grids.uniform(2))
    assert net.rows == [4, 4]  # 8 rows for 2 pictures and 2 steps, not 12
    expected = ddim(guided_by(partial(cfg, scale=3.0), Net()), rectified_flow, start(), grids.uniform(2))
    assert_close(found, expected, atol=1e-6, rtol=0)
