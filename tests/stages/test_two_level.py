"""Facts about the stage of VQ-VAE-2's priors and what it leaves: learning, exact resume, bundles."""

import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import AtBatch, EndedError
from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.bundle import Bundle
from ldm.checkpoints.training_state import newest_state
from ldm.data.codes import CodeData
from ldm.generators.code_bundle import load_codes
from ldm.generators.generator import Generator, open_generator
from ldm.generators.token_loop import Choice, generate_codes
from ldm.models.two_level import TransformerPrior, TwoLevelPriors
from ldm.stages.text_to_codes import TwoLevelStage

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
TRANSFORMER = {
    "_target_": "ldm.models.two_level.TransformerPrior",
    **{"num_codes": 8, "width": 16, "depth": 1, "num_heads": 2},
}
NET = {
    "_target_": "ldm.models.two_level.TwoLevelPriors",
    "top": TRANSFORMER | {"grid": 2, "context_dim": 16},
    "bottom": TRANSFORMER | {"grid": 4, "coarse": {"num_codes": 8, "grid": 2}},
}
PIXELS = {
    "_target_": "ldm.models.two_level.PixelPrior",
    **{"num_codes": 8, "grid": 4, "width": 16, "blocks": 1, "residuals": 1, "num_heads": 2, "attends": False},
    "coarse": {"num_codes": 8, "grid": 2},
}


@pytest.fixture
def codes(two_levels_path):
    return load_codes(image_tokenizer=str(two_levels_path))


@pytest.fixture
def make_stage(codes, codec, adamw, build_network):
    """`make_stage(net=..., **options)`: always with the same first weights."""

    def make(net=NET, **options) -> TwoLevelStage:
        defaults = {"sampling": {"scale": 2.0, "top_k": 4}, "optimizer": adamw, "decay": lambda step: 1.0}
        defaults |= {"caption_drop": 0.5, "seed": 3}
        return TwoLevelStage(net=build_network(net, 3), codes=codes, codec=codec, **(defaults | options))

    return make


@pytest.fixture
def data(pictures, codes, codec):
    return CodeData(pictures=pictures, codes=codes, codec=codec)


@pytest.mark.parametrize(
    ("end", "bottom"), [(3, NET["bottom"]), (4, PIXELS)], ids=["transformers", "a bottom of convolutions"]
)
def test_a_stopped_training_resumes_to_the_bit(make_stage, data, make_trainer, tmp_path, end, bottom):
    def train(name, *callbacks):
        folder = tmp_path / name
        saved = [EMA(decay=0.9), Gradients(clip=1.0), SaveStates(folder=folder, every=2)]
        stage = make_stage(NET | {"bottom": bottom})
        make_trainer(5, *saved, *callbacks).fit(
            stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True
        )
        return torch.load(newest_state(folder), weights_only=True)

    whole = train("whole")
    with pytest.raises(EndedError):
        train("stopped", AtBatch(end))
    assert differences(compared(whole), compared(train("stopped"))) == []


def test_the_bundle_generates_what_the_stage_generates_whatever_the_batch(
    make_stage, data, make_trainer, tmp_path, two_levels_path, bundle_path
):
    stage = make_stage()
    trainer = make_trainer(2, EMA(decay=0.5), limit_val_batches=1, val_check_interval=2)
    trainer.fit(stage, datamodule=data)
    config = {"backbone": NET, "name": "test", "codes": {"image_tokenizer": str(two_levels_path)}}
    config |= {"codec": {"text_encoder": str(bundle_path)}}
    bundle = Bundle.open(stage.write_bundle(tmp_path / "b", config=config, data=data))
    generator = open_generator(bundle).generator
    assert isinstance(generator, Generator)
    prompts, seeds = [f"picture {number}" for number in range(10)], list(range(10))
    together = generator(prompts, seeds)
    assert torch.equal(together, stage.generator()(prompts, seeds))
    for few in (slice(3, 4), slice(8, 10)):
        assert torch.equal(together[few], generator(prompts[few], seeds[few]))
    assert generator.nfe == 4 * 2 + 16
    assert generator.settings() == {"temperature": 1.0, "top_k": 4, "top_p": 1.0, "scale": 2.0}
    again = open_generator(bundle, **generator.settings()).generator
    assert torch.equal(again(prompts[:1], [0]), together[:1])
    # likelihoods are exact: random priors of 8 codes are worse than even ones, by little
    logged = trainer.callback_metrics
    for name in ("val/bits_top", "val/bits_bottom"):
        assert 2 < logged[name] < 6
    codes, nats = (4, 16), [logged[f"val/bits_{name}"] * math.log(2) for name in ("top", "bottom")]
    mean = sum(count * each for count, each in zip(codes, nats, strict=True)) / 20
    torch.testing.assert_close(logged["val/loss"], mean)


def test_whoever_watches_sees_every_code_and_changes_nothing(make_stage):
    generator, seen = make_stage().generator(), []
    watched = generator(["a cat"], [1], watch=lambda progress: seen.append(progress))
    assert [(each.step, each.steps) for each in seen] == [(number + 1, 20) for number in range(20)]
    assert torch.equal(seen[-1].preview(), watched)
    assert torch.equal(generator(["a cat"], [1]), watched)


def test_the_levels_are_sampled_with_numbers_of_their_own(make_stage):
    """Even priors of the same codes: their choices are those of the noise alone."""
    generator = make_stage(sampling={}).generator()
    for prior in (generator.net.top, generator.net.bottom):
        prior.head.weight.data.zero_()
    rows = generator.sample_codes(["a cat"], [1], lambda *_: None)
    assert not torch.equal(rows[0, :4], rows[0, 4:8])


def test_it_learns_eight_pictures_of_one_colour_and_reads_the_top(unchecked_shapes):
    """Captions 1:1. The picture's colour is in its top codes; shuffled top codes give other bottom codes."""
    torch.manual_seed(0)
    prior = {"num_codes": 8, "width": 32, "depth": 2, "num_heads": 2}
    net = TwoLevelPriors(
        top=TransformerPrior(**prior, grid=2, context_dim=16),
        bottom=TransformerPrior(**prior, grid=4, coarse={"num_codes": 8, "grid": 2}),
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, fused=True)
    captions = F.normalize(torch.randn(8, 1, 16), dim=-1) * 4
    top, bottom = torch.arange(8)[:, None].expand(8, 4), torch.arange(8)[:, None].expand(8, 16)
    for _ in range(100):
        loss = torch.cat(net.nats(captions, top, bottom), dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 2 * 0.0161  # measured once
    net.eval()
    coarse = generate_codes(net.top, captions, range(8), Choice())
    assert (coarse == top).all(dim=1).sum() >= 7
    others = top.roll(1, dims=0)
    fine = generate_codes(net.bottom, others, range(8), Choice())
    assert (fine == bottom.roll(1, dims=0)).float().mean() > 0.95
    shuffled, true = (net.bottom.nats(each, bottom).image.mean().item() for each in (others, top))
    assert shuffled > 10 * true


@pytest.mark.parametrize(
    ("net", "options", "sentence"),
    [
        ({}, {"caption_drop": -0.1}, "caption_drop=-0.1 must lie in"),
        ({}, {"sampling": {"top_p": 0.0}}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({}, {"sampling": {"steps": 3}}, "has no option 'steps'; it has temperature, top_k, top_p, scale"),
        ({}, {"sampling": {"top_k": "all"}}, "top_k='all'"),
        ({"top": NET["top"] | {"context_dim": 8}}, {}, "backbone.top.context_dim=8, but codec.text_encoder"),
        ({"bottom": NET["bottom"] | {"grid": 8}}, {}, r"priors are of \[\(2, 8\), \(8, 8\)\]"),
    ],
)
def test_what_does_not_go_together_is_refused(make_stage, net, options, sentence):
    with pytest.raises(UserError, match=sentence):
        make_stage(NET | net, **options)


def test_a_tokenizer_of_one_level_is_refused(make_stage, codec, adamw, codes_path, build_network):
    with pytest.raises(UserError, match=r"the tokenizer of pictures has \[\(4, 16\)\]"):
        make_stage().__class__(
            net=build_network(NET, 0),
            codes=load_codes(image_tokenizer=str(codes_path)),
            codec=codec,
            sampling={},
            optimizer=adamw,
            decay=lambda step: 1.0,
        )
