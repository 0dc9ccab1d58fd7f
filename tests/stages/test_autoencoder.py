"""Facts about the autoencoder's stage."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from ldm import UserError
from ldm.checkpoints.bundle import Bundle
from ldm.codec import to_float, to_uint8
from ldm.data.datamodule import PictureData
from ldm.metrics.networks import efficientnet_lite0
from ldm.metrics.reconstruction import psnr
from ldm.models.losses import PatchDiscriminator, PerceptualDistance
from ldm.stages.autoencoder import (
    STATISTICS_BATCH,
    AutoencoderStage,
    ScalesAndTurns,
    measure_latents,
    sampled,
)
from ldm.stages.optim import warmup_constant

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


@pytest.fixture
def make_stage(build_network, specs, adamw):
    def make(**options) -> AutoencoderStage:
        defaults = {"kl_weight": 1e-4, "decay": partial(warmup_constant, warmup=1), "seed": 2}
        net = build_network(specs["autoencoder"], 11)
        return AutoencoderStage(net=net, optimizer=adamw, **(defaults | options))

    return make


@pytest.fixture
def discriminator():
    torch.manual_seed(1)
    return PatchDiscriminator(channels=4, layers=1)


@pytest.fixture
def perceptual():
    """Features of two random layers."""
    torch.manual_seed(2)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    return PerceptualDistance([first, nn.Sequential(nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())])


@pytest.fixture
def batch(pictures, make_trainer):
    pictures.trainer = make_trainer(3)
    return next(iter(pictures.train_dataloader()))


def test_the_loss_is_the_sum_of_its_terms(make_stage, perceptual, batch):
    stage = make_stage(kl_weight=0.3, squared_weight=0.5, perceptual=perceptual, perceptual_weight=0.7)
    images = to_float(batch["image"])
    posterior = stage.net.posterior(images)
    decoded = stage.net.decode(posterior.mean)
    terms = stage.terms(images, decoded, posterior)
    error = decoded - images
    assert_close(terms.pixel, error.abs().mean() + 0.5 * error.square().mean())
    assert_close(terms.kl, posterior.kl().mean() / (4 * 4 * 4))
    assert_close(terms.perceptual, perceptual(decoded, images).mean())
    assert_close(terms.total, terms.pixel + 0.3 * terms.kl + 0.7 * terms.perceptual)
    terms.perceptual.backward()
    assert stage.net.decoder.conv_out.weight.grad.abs().sum() > 0


def test_a_perceptual_term_of_weight_0_changes_nothing(make_stage, perceptual, batch):
    stages = [make_stage(), make_stage(perceptual=perceptual)]
    for stage in stages:
        stage.training_step(batch, 0).backward()
    gradients = [[p.grad for p in stage.net.parameters()] for stage in stages]
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_an_equivariant_codec_decodes_transformed_latents_to_transformed_pictures():
    """Its latents are its pixels, their channels mixed and moved: that commutes with every transformation."""
    pictures = torch.rand(2, 3, 16, 24, dtype=torch.float64)
    mixing, shift = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0], 0.3
    transform, changed = ScalesAndTurns(), 0
    for step in range(40):
        latents = torch.einsum("dc, b c h w -> b d h w", mixing, pictures) + shift
        latents, expected = transform(latents, pictures, seed=1, step=step)
        decoded = torch.einsum("dc, b d h w -> b c h w", mixing, latents - shift)
        assert_close(decoded, expected, atol=1e-12, rtol=0)
        changed += expected.shape != pictures.shape or not torch.equal(expected, pictures)
    assert 10 < changed < 30  # half of 40, five standard deviations at most from it


def test_latents_and_pictures_keep_their_factor_and_a_mean():
    latents, pictures = torch.full((1, 4, 4, 6), 0.2), torch.full((1, 3, 16, 24), 0.7)
    transform, shapes = ScalesAndTurns(share=1.0, smallest=0.5), set()
    for step in range(1, 60):
        small, scaled = transform(latents, pictures, seed=0, step=step)
        assert [4 * side for side in small.shape[2:]] == list(scaled.shape[2:])
        assert_close((small, scaled), (small * 0 + 0.2, scaled * 0 + 0.7))
        shapes.add(tuple(small.shape[2:]))
    turned = {(6, 4), (4, 3), (3, 2)}
    assert shapes == {(4, 6), (3, 4), (2, 3)} | turned  # beside 3 rows stand 4.5 columns, rounded to even
    upright = ScalesAndTurns(share=1.0, smallest=1.0, turns=False)
    assert torch.equal(upright(latents, pictures, seed=0, step=5)[1], pictures)


@pytest.mark.parametrize(
    ("side", "rows"), [(64, {2, 3, 4, 5, 6, 7, 8}), (32, {2, 3, 4}), (16, {2}), (8, {1})]
)
def test_no_picture_is_scaled_below_what_the_networks_of_the_loss_see(side, rows):
    """Here 16 px, at f = 8: at 64 px that is the smallest factor itself, and 16 px are turned alone."""
    latents, pictures = torch.zeros(1, 4, side // 8, side // 8), torch.zeros(1, 3, side, side)
    transform = partial(ScalesAndTurns(share=1.0), latents, pictures, seed=0, least=16)
    assert {transform(step=step)[0].shape[2] for step in range(1, 100)} == rows


def test_the_networks_of_the_loss_see_pictures_of_their_least_side_and_no_smaller_ones(discriminator):
    network = efficientnet_lite0(size=32)
    least = torch.zeros(1, 3, network.least, network.least)
    assert network(least, least).item() == 0
    judge, side = discriminator, discriminator.least
    assert judge(torch.zeros(1, 3, side, side)).shape[2:] == (1, 1)
    with pytest.raises(UserError, match="got 5x6 pixels, needs 6: give it fewer layers"):
        judge(torch.zeros(1, 3, side - 1, side))


def test_pictures_too_small_for_the_adversary_are_refused_at_the_first_step(
    make_stage, pictures, make_trainer
):
    stage = make_stage(discriminator=PatchDiscriminator(channels=4, layers=3), discriminator_start=100)
    with pytest.raises(UserError, match="the discriminator got 16x16 pixels, needs 24"):
        make_trainer(1).fit(stage, datamodule=pictures)


def test_a_step_that_is_not_transformed_is_that_without_the_option(make_stage, batch):
    plain = make_stage().training_step(batch, 0)
    never, first = (make_stage(equivariance=ScalesAndTurns(share=share)) for share in (0.0, 1.0))
    assert torch.equal(never.training_step(batch, 0), plain)
    assert torch.equal(first.training_step(batch, 0), plain)  # step 0


@pytest.mark.parametrize("options", [{"share": 1.1}, {"share": -0.1}, {"smallest": 0.0}, {"smallest": 1.5}])
def test_a_transformation_out_of_range_is_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"equivariance.{name}={value} must lie in"):
        ScalesAndTurns(**options)


@pytest.mark.parametrize("equivariance", [None, ScalesAndTurns(share=1.0)])
def test_the_losses_of_a_step_are_the_means_over_its_accumulated_batches(
    make_stage, copy_emoji, make_trainer, equivariance
):
    def logged(batch_size: int, accumulated: int) -> dict[str, float]:
        pictures = PictureData(root=str(root), size=16, batch_size=batch_size, seed=3)
        trainer = make_trainer(
            2, precision="32-true", accumulate_grad_batches=accumulated, log_every_n_steps=1
        )
        trainer.fit(make_stage(equivariance=equivariance), datamodule=pictures)
        return {name: float(trainer.callback_metrics[f"train/{name}"]) for name in ("total", "pixel", "kl")}

    root = copy_emoji()
    assert logged(4, 2) == pytest.approx(logged(8, 1), rel=1e-5)  # the same samples


def test_frozen_features_are_in_no_state_and_get_no_gradient(make_stage, perceptual, batch):
    stage = make_stage(perceptual=perceptual, perceptual_weight=1.0)
    assert all(name.startswith("net.") for name in stage.state_dict())
    stage.training_step(batch, 0).backward()
    assert all(p.grad is None for p in perceptual.parameters())


def test_a_step_draws_from_positions_and_seed_alone(make_stage, batch):
    first = make_stage().training_step(batch, 0)
    torch.rand(5)
    assert torch.equal(make_stage().training_step(batch, 7), first)
    moved = batch | {"position": batch["position"] + 1}
    assert not torch.equal(make_stage().training_step(moved, 0), first)
    assert not torch.equal(make_stage(seed=5).training_step(batch, 0), first)


def test_a_few_pictures_are_learned(make_stage, batch, make_trainer):
    stage = make_stage()

    def quality() -> float:
        with torch.no_grad():
            decoded = stage.net.decode(stage.net.posterior(to_float(batch["image"])).mean)
        return psnr(to_uint8(decoded), batch["image"]).mean().item()

    before = quality()
    batches = [batch | {"position": batch["position"] + 4 * step} for step in range(100)]
    make_trainer(100, precision="32-true").fit(stage, train_dataloaders=DataLoader(batches, batch_size=None))
    assert quality() > before + 6


def test_latents_get_mean_0_and_variance_1(make_stage, pictures):
    stage = make_stage()
    images = pictures.train.images()
    found = measure_latents(stage.net, images.split(7), of=len(images))
    shift, scale = found.shift, found.scale
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        posterior = stage.net.posterior(to_float(images).repeat(50, 1, 1, 1))
        drawn = posterior.sample(torch.randn(posterior.mean.shape, generator=generator))
    scaled = (drawn - shift.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
    assert_close(scaled.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.05, rtol=0)
    assert_close(scaled.var(dim=(0, 2, 3)), torch.ones(4), atol=0.05, rtol=0)
    again = measure_latents(stage.net, images.split(20), of=len(images))
    assert_close((shift, scale), (again.shift, again.scale))
    assert not found.shift_error.any()  # of a set that is taken whole
    assert not found.scale_error.any()


@pytest.mark.usefixtures("unchecked_shapes")
def test_the_standard_errors_of_a_sample_are_the_spread_over_samples(make_stage, pictures):
    net, images = make_stage().net, pictures.train.images()
    found = []
    for seed in range(200):
        numbers = sampled(len(images), count=8, seed=seed)
        assert numbers == sorted(set(numbers))
        assert len(numbers) == 8
        found.append(measure_latents(net, [images[numbers]], of=len(images)))
    whole = measure_latents(net, [images], of=len(images))
    shifts, scales = (torch.stack([getattr(one, name) for one in found]) for name in ("shift", "scale"))
    shift_error = torch.stack([one.shift_error.square() for one in found]).mean(0).sqrt()
    scale_error = torch.stack([one.scale_error.square() for one in found]).mean(0).sqrt()
    # 200 samples give a spread to 5 %; of 8 pictures the estimate itself is low by their number and skewness
    assert_close(shift_error, shifts.std(dim=0) * whole.scale, rtol=0.25, atol=0)
    assert_close(scale_error, scales.std(dim=0) / whole.scale, rtol=0.25, atol=0)


def test_a_sample_is_a_function_of_the_seed_and_a_larger_one_holds_the_smaller():
    assert sampled(100, count=10, seed=1) == sampled(100, count=10, seed=1) != sampled(100, count=10, seed=2)
    assert set(sampled(100, count=10, seed=1)) < set(sampled(100, count=30, seed=1))
    assert sampled(5, count=5, seed=1) == sampled(5, count=9, seed=1) == list(range(5))


def test_the_bundle_of_a_sample_says_so(make_stage, pictures, specs, tmp_path, capsys):
    stage = make_stage(statistics_pictures=8)
    config = {"name": "tiny", "autoencoder": specs["autoencoder"]}
    bundle = Bundle.open(stage.write_bundle(tmp_path / "bundle", config=config, data=pictures))
    told = bundle.config["latent_statistics"]
    assert (told["pictures"], told["of"]) == (8, 20)
    assert all(0 < error < 1 for error in told["shift_error"] + told["scale_error"])
    assert "latent statistics of 8 of 20 pictures: standard errors of at most" in capsys.readouterr().out
    with pytest.raises(ValueError, match="statistics_pictures=1 must be at least 2"):
        make_stage(statistics_pictures=1)


def test_the_adversary_waits_and_a_batch_is_one_step(make_stage, discriminator, pictures, make_trainer):
    stage = make_stage(discriminator=discriminator, discriminator_start=3)
    kernels = [p for p in discriminator.parameters() if p.ndim > 1]
    before = [p.clone() for p in kernels]
    trainer = make_trainer(3)
    trainer.fit(stage, datamodule=pictures)
    assert trainer.global_step == 3
    assert all(torch.equal(a, b) for a, b in zip(before, kernels, strict=True))
    assert "train/adversarial" not in trainer.callback_metrics

    stage = make_stage(discriminator=discriminator, discriminator_start=3)
    trainer = make_trainer(5)
    trainer.fit(stage, datamodule=pictures)
    assert trainer.global_step == 5
    assert not any(torch.equal(a, b) for a, b in zip(before, kernels, strict=True))
    assert {"train/adversarial", "train/adaptive_weight", "train/discriminator"} <= set(
        trainer.callback_metrics
    )
    assert trainer.callback_metrics["train/adaptive_weight"] > 0


def test_the_adversary_changes_what_the_autoencoder_learns(make_stage, pictures, make_trainer, discriminator):
    alone = make_stage()
    make_trainer(2).fit(alone, datamodule=pictures)
    later = make_stage(discriminator=discriminator, discriminator_start=2)
    make_trainer(2).fit(later, datamodule=pictures)
    against = make_stage(discriminator=discriminator)
    make_trainer(2).fit(against, datamodule=pictures)
    weights = [stage.net.decoder.conv_out.weight for stage in (alone, later, against)]
    assert torch.equal(weights[0], weights[1])  # until it starts, alternating is plain training
    assert not torch.equal(weights[0], weights[2])


def test_the_learning_rate_steps_once_a_batch(make_stage, discriminator, pictures, make_trainer):
    stage = make_stage(discriminator=discriminator, decay=partial(warmup_constant, warmup=10))
    trainer = make_trainer(4)
    trainer.fit(stage, datamodule=pictures)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(2e-3 * 0.5)


def test_validation_reports_quality(make_stage, pictures, make_trainer):
    metrics = make_trainer(1, limit_val_batches=1.0).validate(
        make_stage(), datamodule=pictures, verbose=False
    )[0]
    assert set(metrics) == {"val/loss", "val/kl", "val/psnr", "val/ssim"}
    assert 0 < metrics["val/psnr"] < 60


def test_the_bundle_holds_the_autoencoder_and_its_statistics(make_stage, pictures, specs, tmp_path):
    stage = make_stage()
    config = {"name": "tiny", "autoencoder": specs["autoencoder"]}
    bundle = Bundle.open(stage.write_bundle(tmp_path / "bundle", config=config, data=pictures))
    images = pictures.train.images().split(STATISTICS_BATCH)
    found = measure_latents(stage.net, images, of=20)
    assert bundle.config["latents"] == {"shift": found.shift.tolist(), "scale": found.scale.tolist()}
    images = to_float(pictures.val.images())
    with torch.no_grad():
        ours, theirs = stage.net.posterior(images).mean, bundle.network("autoencoder").posterior(images).mean
    assert_close(theirs, ours, rtol=1e-2, atol=1e-2)  # stored in half precision
