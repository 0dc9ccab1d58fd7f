"""Facts about a transformer that is guided by its own early head."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.construct import construct
from ldm.diffusion.guidance import batched, cfg
from ldm.diffusion.internal import internal
from ldm.diffusion.predictions import V
from ldm.diffusion.process import Process
from ldm.diffusion.schedules import cosine
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.stages.terms import EarlyPrediction
from tests.fixtures import DENOISER, option

SPEC = DENOISER | {"depth": 3, "early_head": 1}
X, T = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1)), torch.tensor(0.6)
CONTEXT = torch.randn(4, 6, 16, generator=torch.Generator().manual_seed(2))
PROCESS = Process(schedule=cosine(), prediction=V())


@pytest.fixture
def net(build_network):
    return build_network(SPEC, 2).eval()


def never(x, t):
    raise AssertionError("the unconditional denoiser was called")


class Counted(torch.nn.Module):
    """A network that counts the rows that it is given."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net, self.rows = net, 0

    def forward(self, x, *inputs, **asked):
        self.rows += len(x)
        return self.net(x, *inputs, **asked)


@torch.no_grad()
def test_internal_guidance_mixes_both_heads_x0_in_one_pass(net):
    counted = Counted(net)
    heads = [partial(lambda early, *inputs: net(*inputs, early=early), early) for early in (0.0, 1.0)]
    early, last = (PROCESS.denoiser(head, CONTEXT[:2])(X, T) for head in heads)
    assert not torch.equal(early, last)
    guided = internal(PROCESS.denoiser(counted, CONTEXT[:2]), never, scale=1.7)(X, T)
    assert_close(guided, early + 1.7 * (last - early), rtol=1e-4, atol=1e-5)
    assert counted.rows == 2
    assert torch.equal(internal(PROCESS.denoiser(net, CONTEXT[:2]), never, scale=1.0)(X, T), last)


@torch.no_grad()
def test_a_guidance_within_mixes_what_is_mixed_already(net):
    pair = batched(PROCESS.denoiser(net, CONTEXT))
    cond = PROCESS.denoiser(net, CONTEXT[:2])
    guided = internal(cond, pair, scale=1.7, within=partial(cfg, scale=3.0))(X, T)
    one, other = (internal(PROCESS.denoiser(net, part), never, scale=1.7)(X, T) for part in CONTEXT.split(2))
    assert_close(guided, other + 3 * (one - other), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_an_early_head_changes_neither_the_prediction_nor_the_first_weights(net, build_network):
    inputs = (X, torch.tensor([10.0, 700.0]), CONTEXT[:2])
    output, states = net(*inputs, hidden=["early", "block0"])
    assert torch.equal(net(*inputs), output)
    assert torch.equal(net(*inputs, early=0.0), states["early"])
    torch.manual_seed(3)
    plain = construct(SPEC | {"early_head": None}).state_dict()
    torch.manual_seed(3)
    found = construct(SPEC).state_dict()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert len(found) == len(plain) + 4


def test_the_head_is_in_the_bundle_which_samples_by_it(diffusion_stage, build_network, bundle_path, tmp_path):
    stage = diffusion_stage(
        net=build_network(SPEC, 2).half().float(), terms={"internal": EarlyPrediction}, initial=None
    )
    source = Bundle.open(bundle_path).config
    config = {"name": "tiny", "codec": {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)}}
    config |= {"backbone": SPEC, "process": source["process"], "guidance": option("guidance", "internal")}
    config |= {"sampler": source["sampler"] | {"steps": 2}}
    written = Bundle.open(stage.write_bundle(tmp_path / "bundle", config=config, data=None))
    opened = open_latent_diffusion(written)
    assert opened.settings()["guidance"]["scale"] == 1.4
    assert opened.nfe == 2
    # the bundle's codec is rounded to half precision, and the network already was
    ours = replace(stage.generator(), codec=opened.codec, guidance=partial(internal, scale=1.4))
    stage.net.eval()
    drawn = opened.latents(["a red apple"], [3])
    assert torch.equal(drawn, ours.latents(["a red apple"], [3]))
    unguided = opened.with_options(scale=1.0).latents(["a red apple"], [3])
    assert not torch.allclose(drawn, unguided, atol=0.05)


@pytest.mark.parametrize("nested", [False, True])
def test_a_network_without_an_early_head_is_refused_before_anything_is_sampled(diffusion_stage, nested):
    guidance = partial(internal, scale=1.4)
    if nested:
        guidance = construct(option("guidance", "cfg_interval", within=option("guidance", "internal")))
    with pytest.raises(UserError, match=r"guidance=internal needs a network with an early head"):
        diffusion_stage(guidance=guidance).generator()


@pytest.mark.parametrize("blocks", [0, 3])
def test_an_early_head_that_is_not_early_is_refused(blocks):
    with pytest.raises(UserError, match=f"early_head={blocks} must be at least 1 and below depth=3"):
        construct(SPEC | {"early_head": blocks})


def test_a_scale_that_is_no_finite_number_is_refused():
    with pytest.raises(UserError, match="scale=nan must be a finite number"):
        internal(lambda x, t: x, lambda x, t: (x, x), scale=float("nan"))
