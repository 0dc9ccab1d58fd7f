"""Facts about the denoiser's stage."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, Subset

from ldm import UserError
from ldm.callbacks.ema import EMA
from ldm.checkpoints.bundle import Bundle
from ldm.construct import construct
from ldm.data.datamodule import PictureData
from ldm.data.latents import LatentData, collate
from ldm.generators.diffusion_bundle import open_latent_diffusion
from ldm.randomness import keyed
from ldm.stages.diffusion import FIXED_TIMES, check_codec
from tests.fixtures import option

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture
def batch(latents, codec, make_trainer, diffusion_stage):
    """The first training batch."""
    trainer = make_trainer(5)
    latents.trainer = trainer
    trainer.strategy.connect(diffusion_stage())
    latents.setup("fit")
    return latents.on_after_batch_transfer(next(iter(latents.train_dataloader())), 0)


def ready(stage):
    """A stage that can take a step without a trainer."""
    stage.on_fit_start()
    return stage


def test_the_codec_is_in_no_state_and_in_no_optimizer(diffusion_stage, codec):
    stage = diffusion_stage()
    assert all(name.startswith("net.") for name in stage.state_dict())
    optimizer = stage.configure_optimizers()["optimizer"]
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in stage.net.parameters()}
    frozen = [*codec.autoencoder.parameters(), *codec.text_encoder.parameters()]
    assert not any(p.requires_grad for p in frozen)


def test_a_step_draws_from_positions_and_seed_alone(diffusion_stage, batch):
    stage = ready(diffusion_stage(seed=3))
    first = stage.training_step(batch, 0)
    torch.rand(5)
    assert torch.equal(stage.training_step(batch, 9), first)
    moved = batch | {"position": batch["position"] + 1}
    assert not torch.equal(stage.training_step(moved, 0), first)
    assert not torch.equal(ready(diffusion_stage(seed=4)).training_step(batch, 0), first)


def test_a_sample_has_the_same_loss_in_any_batch(diffusion_stage, batch):
    stage = ready(diffusion_stage())
    alone = [
        stage.training_step({key: value[i : i + 1] for key, value in batch.items()}, 0) for i in range(4)
    ]
    assert_close(stage.training_step(batch, 0), torch.stack(alone).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("share", "same"), [(1.0, True), (0.0, False)])
def test_dropped_captions_are_the_empty_prompt(
    diffusion_stage, batch, codec, share, same, build_network, specs
):
    stage = ready(diffusion_stage(caption_drop=share))
    stage.net = build_network(specs["backbone"], 2)  # one that reads its context already
    empty = codec.encode_prompts([""]).expand_as(batch["context"])
    losses = [stage.training_step(batch | {"context": context}, 0) for context in (batch["context"], empty)]
    assert torch.equal(*losses) == same


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_of_captions_to_drop_that_is_none_is_refused(diffusion_stage, share):
    with pytest.raises(UserError, match=f"caption_drop={share} must lie in"):
        diffusion_stage(caption_drop=share)


@pytest.mark.parametrize("lr", [0.0, float("inf")])
def test_a_learning_rate_with_which_nothing_is_learned_is_refused(diffusion_stage, lr):
    stage = diffusion_stage()
    stage.optimizer = partial(torch.optim.AdamW, lr=lr)
    with pytest.raises(UserError, match=r"optimizer\.lr=.* must be a finite number above 0"):
        stage.configure_optimizers()


def test_the_stated_share_of_captions_is_dropped(diffusion_stage):
    stage = ready(diffusion_stage(caption_drop=0.1))
    dropped = stage._dropped(torch.arange(4000)).double().mean().item()
    assert abs(dropped - 0.1) < 4 * (0.1 * 0.9 / 4000) ** 0.5


def test_a_few_pictures_are_learned(diffusion_stage, batch, make_trainer):
    stage = diffusion_stage()
    batch["std"] = torch.zeros_like(batch["std"])  # an untrained autoencoder's latents are mostly noise
    generator = torch.Generator().manual_seed(0)
    draws = {"noise": torch.randn(4, 4, 4, 4, generator=generator), "uniform": torch.linspace(0.1, 0.9, 4)}

    def error() -> float:
        with torch.no_grad():
            losses = stage.process.loss(stage.averaged or stage.net, batch["mean"], batch["context"], **draws)
        return losses.mean().item()

    before = error()
    batches = [batch | {"position": batch["position"] + 4 * step} for step in range(120)]
    trainer = make_trainer(120, EMA(decay=0.9), precision="32-true")
    trainer.fit(stage, train_dataloaders=DataLoader(batches, batch_size=None))
    assert error() < 0.5 * before


def test_validation_is_repeatable_and_its_bins_average_to_the_loss(diffusion_stage, latents, make_trainer):
    stage = diffusion_stage()
    trainer = make_trainer(1, limit_val_batches=1.0)
    trainer.fit(stage, datamodule=latents)
    first, second = (trainer.validate(stage, datamodule=latents, verbose=False)[0] for _ in range(2))
    assert first == second
    bins = [first[f"val/loss_bin{number}"] for number in range(4)]
    assert first["val/loss"] == pytest.approx(sum(bins) / 4)
    assert len(set(bins)) == 4


@pytest.fixture
def validated(make_trainer, latents):
    """`validated(stage, batch_size, backwards=False)`: `val/loss_fixed` of the held-out pictures."""

    def run(stage, batch_size, *, backwards=False):
        latents.setup("validate")
        order = range(len(latents.val))[::-1] if backwards else range(len(latents.val))
        loader = DataLoader(Subset(latents.val, order), batch_size=batch_size, collate_fn=collate)
        batches = [latents.on_after_batch_transfer(each, 0) for each in loader]
        trainer = make_trainer(1, limit_val_batches=1.0, precision="32-true")
        (numbers,) = trainer.validate(stage, DataLoader(batches, batch_size=None), verbose=False)
        return numbers["val/loss_fixed"]

    return run


@pytest.mark.parametrize("process", ["flow", "ddpm", "sd2_v", "edm"])
def test_the_loss_at_fixed_times_is_that_of_the_pictures_however_they_come(
    diffusion_stage, validated, build_network, specs, process
):
    def stage(seed, **changes):
        spec = option("process", process) | changes
        made = diffusion_stage(process=construct(spec), seed=seed)
        made.net = build_network(specs["denoiser"], 2)  # one that starts from no zeros
        return made

    found = validated(stage(3), 4)
    weight = {"_target_": "ldm.diffusion.predictions.min_snr", "_partial_": True, "gamma": 2.0}
    times = {"_target_": "ldm.diffusion.process.logit_normal_timesteps", "_partial_": True, "shift": 3.0}
    others = [
        validated(stage(3), 3, backwards=True),  # a batch of three, then one of one
        validated(stage(4, weight=weight, times=times), 1),  # another training of the same network
    ]
    assert others == pytest.approx([found] * len(others), rel=1e-6)  # rounding of float32


def test_the_loss_at_fixed_times_is_the_mean_square_error_there(diffusion_stage, batch):
    stage = ready(diffusion_stage())
    stage.averaged = lambda x, t, context: x * t.view(-1, 1, 1, 1) / 1000
    expected = 0
    for k in range(8):
        t = round((k + 0.5) / 8, 3)
        draws = {"seed": 0, "positions": batch["index"], "stream": f"val/fixed/{t}"}
        noise = keyed.normal(batch["mean"].shape[1:], **draws)
        x = (1 - t) * batch["mean"] + t * noise  # the flow's straight path
        expected += (t * x - (noise - batch["mean"])).square().flatten(1).mean(1) / 8
    assert_close(stage.loss_at_fixed_times(batch), expected, rtol=1e-5, atol=1e-6)


def test_a_table_has_an_entry_at_each_fixed_time():
    entries = torch.tensor(FIXED_TIMES, dtype=torch.float64) * 1000 - 1
    assert torch.equal(entries.float(), entries.round().float())


def test_validation_and_pictures_come_from_the_average(diffusion_stage):
    stage = diffusion_stage()
    assert stage.generator().net is stage.net
    stage.averaged = other = diffusion_stage().net
    assert stage.generator().net is other


def test_the_bundle_draws_what_the_stage_draws(diffusion_stage, bundle_path, specs, tmp_path, build_network):
    stage = diffusion_stage()
    # weights that half precision holds exactly: stored and loaded, they are the same
    stage.net = build_network(specs["backbone"], 4).half().float()
    source = Bundle.open(bundle_path)
    config = {"name": "tiny", "codec": {"autoencoder": str(bundle_path), "text_encoder": str(bundle_path)}}
    config |= {"backbone": specs["backbone"], "process": source.config["process"]}
    config |= {"sampler": source.config["sampler"] | {"steps": 2}, "guidance": source.config["guidance"]}
    written = Bundle.open(stage.write_bundle(tmp_path / "bundle", config=config, data=None))
    drawn = open_latent_diffusion(written).latents(["a red apple"], [3])
    assert_close(drawn, stage.generator().latents(["a red apple"], [3]), rtol=0.02, atol=0.02)
    assert written.config["origin"]["experiment"] == "tiny"
    assert written.config["codec_origin"]["autoencoder"] == source.config["origin"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"latent_channels": 6}, "backbone: latent_channels=6, but codec.autoencoder makes latents of 4"),
        ({"context_dim": 8}, "backbone: context_dim=8, but codec.text_encoder makes text states of 16"),
    ],
)
def test_a_network_for_another_codec_is_refused(codec, change, sentence):
    net = torch.nn.Identity()
    net.latent_channels, net.context_dim = 4, 16
    check_codec(net, codec)
    for name, value in change.items():
        setattr(net, name, value)
    with pytest.raises(ValueError, match=sentence):
        check_codec(net, codec)


def test_the_loss_of_a_step_is_the_mean_over_its_accumulated_batches(
    copy_emoji, codec, diffusion_stage, make_trainer
):
    def logged(batch_size: int, accumulated: int) -> float:
        pictures = PictureData(root=str(root), size=16, batch_size=batch_size, seed=3)
        trainer = make_trainer(
            1, precision="32-true", accumulate_grad_batches=accumulated, log_every_n_steps=1
        )
        trainer.fit(diffusion_stage(), datamodule=LatentData(pictures=pictures, codec=codec))
        return float(trainer.callback_metrics["train/loss"])

    root = copy_emoji()
    assert logged(4, 2) == pytest.approx(logged(8, 1), rel=1e-5)  # the same eight samples
