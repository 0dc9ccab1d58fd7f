"""Facts about VQ-Diffusion's stage and what it leaves: learning, exact resume, bundles and their pictures."""

import math

import pytest
import torch

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import AtBatch, EndedError
from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.bundle import Bundle, BundleError
from ldm.checkpoints.training_state import newest_state
from ldm.data.codes import CodeData
from ldm.diffusion.discrete import Ancestral, auxiliary, mask_only, released
from ldm.generators.generator import Generator, open_generator
from ldm.models.code_denoiser import CodeDenoiser
from ldm.randomness.uniforms import gumbel, uniforms
from ldm.stages.text_to_codes import DiscreteDiffusionStage, LossHistory, evenly, timesteps_of

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
NET = {
    "_target_": "ldm.models.code_denoiser.CodeDenoiser",
    **{"num_codes": 16, "grid": 4, "num_steps": 10, "context_dim": 16, "context_length": 16},
    **{"width": 16, "depth": 1, "num_heads": 2},
}
PROCESS = {"_target_": "ldm.diffusion.discrete.released", "num_codes": 16, "num_steps": 10}


@pytest.fixture
def make_stage(codes, codec, adamw, build_network):
    """`make_stage(**options)`: always with the same first weights."""

    def make(**options) -> DiscreteDiffusionStage:
        defaults = {
            "net": build_network(NET, 3),
            "process": released(num_codes=16, num_steps=10),
            "sampling": {"steps": 4, "scale": 2.0, "truncation": 0.9},
            "optimizer": adamw,
            "decay": lambda step: 1.0,
            "caption_drop": 0.5,
            "seed": 3,
        }
        return DiscreteDiffusionStage(codes=codes, codec=codec, **(defaults | options))

    return make


@pytest.fixture
def data(pictures, codes, codec):
    return CodeData(pictures=pictures, codes=codes, codec=codec)


@pytest.mark.parametrize(
    ("end", "options"),
    [(3, {}), (4, {"importance": True}), (5, {"accumulate_grad_batches": 2})],
    ids=["even timesteps", "importance", "inside an accumulation"],
)
def test_a_stopped_training_resumes_to_the_bit(make_stage, data, make_trainer, tmp_path, end, options):
    def train(name, *callbacks):
        folder = tmp_path / name
        saved = [EMA(decay=0.9), Gradients(clip=1.0), SaveStates(folder=folder, every=2)]
        trainer = make_trainer(
            5, *saved, *callbacks, accumulate_grad_batches=options.get("accumulate_grad_batches", 1)
        )
        stage = make_stage(importance="importance" in options)
        if stage.history is not None:
            stage.history.counts.fill_(11)  # as after a while: timesteps follow the losses
        trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return torch.load(newest_state(folder), weights_only=True)

    whole = train("whole")
    with pytest.raises(EndedError):
        train("stopped", AtBatch(end))
    assert differences(compared(whole), compared(train("stopped"))) == []
    if "importance" in options:
        assert (whole["state_dict"]["history.squares"] > 0).any()


@pytest.fixture
def batch(data, make_trainer):
    data.setup("fit")
    data.trainer = data.pictures.trainer = make_trainer(3)
    return next(iter(data.train_dataloader()))


def test_a_step_is_a_function_of_positions_and_seed(make_stage, batch):
    first = make_stage().training_step(batch, 0)
    torch.rand(5)
    assert torch.equal(make_stage().training_step(batch, 7), first)
    assert not torch.equal(make_stage(seed=5).training_step(batch, 0), first)


def test_the_loss_of_even_timesteps_is_that_of_its_formula(make_stage, batch):
    """L = T / n x (bound + lambda (2 - (t - 1) / T) x -log p(x_0 | x_t)), written out for every sample."""
    stage = make_stage(caption_drop=1.0)
    seen = {}
    terms = stage.terms

    def spy(net, batch, t, noise, context):
        seen.update(t=t, context=context, found=terms(net, batch, t, noise, context))
        return seen["found"]

    stage.terms = spy
    loss = stage.training_step(batch, 0)
    bound, likelihood = seen["found"]
    expected = 10 / 16 * (bound + 5e-4 * (2 - (seen["t"] - 1) / 10) * likelihood)
    torch.testing.assert_close(loss, expected.mean())
    assert torch.equal(seen["context"][0], stage.net.empty)  # the caption was dropped


def test_timesteps_have_the_probabilities_that_were_asked_for():
    p = torch.tensor([0.5, 0.0, 0.3, 0.2], dtype=torch.float64)
    numbers = (torch.arange(1000) + 0.5) / 1000
    shares = timesteps_of(numbers, p).bincount(minlength=5)[1:] / 1000
    torch.testing.assert_close(shares.double(), p, rtol=0, atol=1e-3)  # of 1,000 numbers
    assert timesteps_of(torch.tensor([0.0, 1 - 2**-24]), evenly(10)).tolist() == [1, 10]


def test_importance_follows_the_losses_once_each_timestep_was_seen_often():
    history = LossHistory(3)
    t, losses = torch.tensor([1, 2, 3, 3]), torch.tensor([9.0, 2.0, 3.0, 5.0])
    for _ in range(10):
        history.update(t, losses)
        assert torch.equal(history.probabilities(), evenly(3))
    history.update(t, losses)
    history.squares.copy_(torch.tensor([81.0, 4.0, 16.0]))
    # the first timestep counts as the second: sqrt 4, sqrt 4, sqrt 16
    torch.testing.assert_close(
        history.probabilities(), torch.tensor([0.25, 0.25, 0.5]).double(), atol=1e-4, rtol=0
    )
    history.update(torch.tensor([3, 1]), torch.tensor([6.0, torch.nan]))
    torch.testing.assert_close(history.squares, torch.tensor([81.0, 4.0, 0.9 * 16 + 0.1 * 36]))


def test_it_learns_eight_pictures_of_one_colour(unchecked_shapes):
    """Captions 1:1, 16 codes a picture: at step 400 0.0014 nats per code, measured once, times 2."""
    torch.manual_seed(0)
    sizes = {"num_codes": 8, "grid": 4, "num_steps": 100, "context_dim": 16, "context_length": 1}
    net = CodeDenoiser(**sizes, width=32, depth=2, num_heads=2)
    process, optimizer = mask_only(num_codes=8), torch.optim.AdamW(net.parameters(), lr=3e-3, fused=True)
    x0, captions = torch.arange(8)[:, None].expand(8, 16), net.context(torch.randn(8, 1, 16))
    for step in range(400):
        positions = torch.arange(8) + 8 * step
        t = timesteps_of(torch.rand(8), evenly(100))
        x = process.noised(x0, t, uniforms((2, 16), seed=0, positions=positions, stream="noise"))
        loss = auxiliary(net(x, t, captions).log_softmax(dim=-1), x0).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 2 * 0.0014
    with torch.no_grad():
        found = Ancestral(steps=10)(
            lambda x, t: net(x, torch.full((8,), t), captions).log_softmax(dim=-1),
            process,
            places=16,
            gumbel=lambda *shape: gumbel(uniforms(shape, seed=1, positions=torch.arange(8), stream="x")),
        )
    assert torch.equal(found, x0)  # all 128 codes


def test_its_bound_is_the_likelihood_of_a_network_that_knows_nothing(make_stage, batch):
    """Even probabilities take ln K nats for each code; where codes are replaced, x_t would tell more."""
    stage = make_stage(process=mask_only(num_codes=16, num_steps=10))
    stage.net.logits.weight.data.zero_()
    stage.net.logits.bias.data.zero_()
    # the bound is an estimate from a timestep of each stratum: the mean of many pictures
    codes, context = (batch[name].repeat(64, *[1] * (batch[name].ndim - 1)) for name in ("codes", "context"))
    nats = stage.bound({"codes": codes, "context": context, "index": torch.arange(256)})
    assert nats.mean().item() == pytest.approx(math.log(16), rel=0.05)


def test_the_bundle_generates_what_the_stage_generates_whatever_the_batch(
    make_stage, data, make_trainer, tmp_path, codes_path, bundle_path
):
    stage = make_stage()
    trainer = make_trainer(2, EMA(decay=0.5), limit_val_batches=1, val_check_interval=2)
    trainer.fit(stage, datamodule=data)
    config = {"backbone": NET, "name": "test", "model": {"stage": {"process": PROCESS}}}
    config |= {"codes": {"image_tokenizer": str(codes_path)}, "codec": {"text_encoder": str(bundle_path)}}
    generator = open_generator(
        Bundle.open(stage.write_bundle(tmp_path / "b", config=config, data=data))
    ).generator
    assert isinstance(generator, Generator)
    prompts, seeds = [f"picture {number}" for number in range(10)], list(range(10))
    together = generator(prompts, seeds)
    assert torch.equal(together, stage.generator()(prompts, seeds))
    assert torch.equal(together[3:4], generator(prompts[3:4], seeds[3:4]))
    assert torch.equal(together[8:], generator(prompts[8:], seeds[8:]))
    assert generator.nfe == 8
    assert generator.settings() == {"steps": 4, "scale": 2.0, "truncation": 0.9}
    again = open_generator(generator_bundle := Bundle.open(tmp_path / "b"), **generator.settings()).generator
    assert torch.equal(again(prompts[:1], [0]), together[:1])
    pure = again.with_options(purity=2.0, steps=2, scale=1.0)
    assert pure.settings()["purity"] == 2.0
    assert torch.equal(pure(prompts, seeds)[4:5], pure(prompts[4:5], seeds[4:5]))
    assert generator_bundle.names == ["backbone", "image_tokenizer", "text_encoder"]
    assert 0 < trainer.callback_metrics["val/loss_fixed"] < 10


def test_whoever_watches_sees_every_step_and_changes_nothing(make_stage):
    generator, seen = make_stage().generator(), []
    prompts, seeds = ["a cat"] * 9, list(range(9))
    watched = generator(prompts, seeds, watch=lambda progress: seen.append(progress))
    assert [(each.step, each.steps) for each in seen] == [(number + 1, 8) for number in range(8)]
    assert torch.equal(seen[-1].preview(), watched)
    assert torch.equal(generator(prompts, seeds), watched)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"process": released(num_codes=15, num_steps=10)},
            "process.num_codes=15, but the tokenizer of pictures has 16",
        ),
        ({"process": released(num_codes=16, num_steps=9)}, "process.num_steps=9, but backbone.num_steps=10"),
        ({"sampling": {"steps": 11}}, "steps=11 are more than the process has, 10"),
        ({"sampling": {"truncation": 0.0}}, "truncation=0.0 must lie in"),
        ({"sampling": {"scale": float("nan")}}, "scale=nan must be a finite number"),
        ({"sampling": {"steps": "many"}}, "steps='many'"),
        ({"caption_drop": 2.0}, "caption_drop=2.0 must lie in"),
        ({"net": {"num_codes": 8}}, "backbone.num_codes=8, but the tokenizer of pictures has 16"),
        ({"net": {"grid": 2}}, "backbone.grid=2, but the tokenizer of pictures has 4"),
        (
            {"net": {"context_dim": 8}},
            "backbone.context_dim=8, but codec.text_encoder makes text states of 16",
        ),
        (
            {"net": {"context_length": 8}},
            "backbone.context_length=8: set it to that of codec.text_encoder, 16",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(make_stage, build_network, options, sentence):
    if isinstance(options.get("net"), dict):
        options = {"net": build_network(NET | options["net"], 0)}
    with pytest.raises(UserError, match=sentence):
        make_stage(**options)


def test_options_that_it_lacks_and_other_tokenizers_are_refused(
    make_stage, tmp_path, codes_path, bundle_path
):
    stage = make_stage()
    with pytest.raises(UserError, match="has no option 'top_k'; it has steps, truncation, purity, scale"):
        stage.generator().with_options(top_k=3)
    config = {"backbone": NET, "name": "test", "model": {"stage": {"process": PROCESS}}}
    config |= {"codes": {"image_tokenizer": str(codes_path)}, "codec": {"text_encoder": str(bundle_path)}}
    bundle = Bundle.open(stage.write_bundle(tmp_path / "b", config=config, data=None))
    with pytest.raises(UserError, match="has no option 'negative'"):
        open_generator(bundle, negative="fog")
    bundle.config["codes"] = "0" * 64
    with pytest.raises(
        BundleError, match="its image_tokenizer is not the one that its backbone was trained with"
    ):
        open_generator(bundle)
    bundle.config["process"] = {"_target_": "ldm.diffusion.schedules.linear"}
    with pytest.raises(BundleError, match="its process is a Table"):
        open_generator(bundle)
