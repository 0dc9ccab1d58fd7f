"""Facts about the guard of the gradients."""

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.plugins.precision import MixedPrecision
from torch.amp import GradScaler

from benchmarks.chaos.equality import compared, differences
from ldm.callbacks.ema import EMA, PowerAverages
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import newest_state
from ldm.models.losses import PatchDiscriminator
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.diffusion import LatentDiffusion


class Poison(Callback):
    """Puts one value that is no number into the third batch."""

    def __init__(self, value: float) -> None:
        self.value = value

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:
            batch["mean"].view(-1)[7] = self.value
            self.stage, self.before = pl_module, [p.detach().clone() for p in pl_module.parameters()]


class Norms(Callback):
    """The norm of all gradients before and after the guard."""

    def __init__(self) -> None:
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.net.parameters()]).item())


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_refused_step_changes_nothing_that_is_saved(
    diffusion_stage, latents, make_trainer, tmp_path, value, every
):
    """The fused optimizer skips the step, and the host learns of it before anything is saved."""

    def trained(name: str, steps: int, *own: Callback) -> LatentDiffusion:
        stage = diffusion_stage()
        saving = SaveStates(folder=tmp_path / name, every=every, keep=9)
        averages = PowerAverages(lengths=[0.1], every=every, folder=str(tmp_path / f"{name} averages"))
        trainer = make_trainer(steps, EMA(decay=0.5), averages, Gradients(clip=1.0), saving, *own)
        trainer.fit(stage, datamodule=latents, ckpt_path=newest_state(tmp_path / name), weights_only=True)
        return stage

    with pytest.raises(FloatingPointError, match=r"step 2: the gradients are not finite.*positions 8 to 11"):
        trained("refused", 4, poison := Poison(value))
    newest = newest_state(tmp_path / "refused")
    assert newest.parent.name == "step=00000002"
    assert len(list((tmp_path / "refused averages").glob("*"))) == 2 // every
    assert all(torch.equal(a, b) for a, b in zip(poison.before, poison.stage.parameters(), strict=True))
    trained("refused", 4)
    trained("whole", 4)
    ended = [torch.load(newest_state(tmp_path / name), weights_only=True) for name in ("refused", "whole")]
    assert differences(*map(compared, ended)) == []


def test_a_refused_step_is_told_where_its_batches_cannot_be_written(
    diffusion_stage, latents, make_trainer, tmp_path
):
    (tmp_path / "refused.json").symlink_to(tmp_path / "elsewhere")
    trainer = make_trainer(6, Gradients(clip=1.0, folder=str(tmp_path)), Poison(float("nan")))
    with pytest.raises(FloatingPointError, match=r"step 2: the gradients.* not be written \(.* is a link to"):
        trainer.fit(diffusion_stage(), datamodule=latents)
    assert not (tmp_path / "elsewhere").exists()


def test_the_norm_is_logged_and_scaled_down_to_the_limit(diffusion_stage, latents, make_trainer):
    before, after = Norms(), Norms()
    trainer = make_trainer(3, before, Gradients(clip=1e-3), after)
    trainer.fit(diffusion_stage(), datamodule=latents)
    assert min(before.norms) > 1e-3
    assert after.norms == pytest.approx([1e-3] * 3, rel=1e-3)
    assert trainer.callback_metrics["train/grad_norm"] == pytest.approx(before.norms[-1])


def test_a_norm_below_the_limit_is_left_alone(diffusion_stage, latents, make_trainer):
    before, after = Norms(), Norms()
    make_trainer(2, before, Gradients(clip=1e6), after).fit(diffusion_stage(), datamodule=latents)
    assert before.norms == after.norms


def test_an_adversary_is_guarded_too(build_network, specs, adamw, pictures, make_trainer):
    net, discriminator = build_network(specs["autoencoder"], 1), PatchDiscriminator(channels=4, layers=1)
    discriminator.layers[0].weight.data.fill_(float("nan"))
    stage = AutoencoderStage(
        net=net, optimizer=adamw, decay=lambda step: 1.0, kl_weight=0.0, discriminator=discriminator
    )
    before = net.decoder.conv_out.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0: the gradients are not finite"):
        make_trainer(2, Gradients(clip=1.0)).fit(stage, datamodule=pictures)
    assert torch.equal(net.decoder.conv_out.weight, before)


def test_an_optimizer_whose_moments_are_not_finite_is_refused(
    diffusion_stage, latents, make_trainer, tmp_path
):
    class Spoils(Callback):
        """Spoils one moment before the third step, and keeps the weights of then."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 2:
                moments = next(iter(trainer.optimizers[0].state.values()))
                moments["exp_avg"].view(-1)[0] = float("inf")
                self.weights = [parameter.detach().clone() for parameter in pl_module.parameters()]

    stage, spoils = diffusion_stage(), Spoils()
    trainer = make_trainer(6, Gradients(clip=1.0, folder=str(tmp_path)), spoils)
    with pytest.raises(FloatingPointError, match="step 2: the optimizer's moments are not finite"):
        trainer.fit(stage, datamodule=latents)
    assert all(torch.equal(a, b) for a, b in zip(spoils.weights, stage.parameters(), strict=True))
    assert (tmp_path / "refused.json").is_file()


class Steps(Callback):
    """A weight after each step; with `broken` its gradient is never finite."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.weights = broken, []

    def on_train_start(self, trainer, pl_module) -> None:
        self.weights.append(pl_module.net.patches_out.weight.detach().clone())
        if self.broken:
            pl_module.net.patches_out.weight.register_hook(lambda gradient: gradient * float("inf"))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.weights.append(pl_module.net.patches_out.weight.detach().clone())


@pytest.fixture
def train_in_float16(diffusion_stage, latents, make_trainer):
    """`train_in_float16(scaler, *callbacks)`: four steps, which a Trainer for CPUs would take in bfloat16."""

    def train(scaler, *callbacks) -> None:
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        trainer = make_trainer(4, Gradients(clip=1.0), *callbacks, precision=None, plugins=[plugin])
        trainer.fit(diffusion_stage(decay=lambda step: 1.0), datamodule=latents)

    return train


def test_a_loss_that_was_scaled_up_too_far_for_float16_costs_a_step_and_is_scaled_down(train_in_float16):
    scaler, steps = GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-50), Steps()
    train_in_float16(scaler, steps)
    start, first, second = steps.weights[:3]
    assert torch.equal(start, first)
    assert not torch.equal(first, second)
    assert scaler.get_scale() == 2.0**10


def test_in_float16_a_loss_that_is_no_number_is_refused_at_once(train_in_float16):
    scaler, steps = GradScaler("cpu", init_scale=2.0**10), Steps()
    with pytest.raises(FloatingPointError, match="step 2: the gradients are not finite"):
        train_in_float16(scaler, Poison(float("nan")), steps)
    assert len(steps.weights) == 3
    assert scaler.get_scale() == 2.0**10


def test_in_float16_gradients_that_no_scale_helps_are_refused(train_in_float16):
    scaler, steps = GradScaler("cpu", init_scale=2.0), Steps(broken=True)
    with pytest.raises(FloatingPointError, match="step 2: the gradients are not finite"):
        train_in_float16(scaler, steps)
    assert all(torch.equal(weight, steps.weights[0]) for weight in steps.weights)


def test_a_loss_that_is_not_finite_is_refused_though_its_gradients_are(
    diffusion_stage, latents, make_trainer
):
    stage = diffusion_stage()
    loss = stage.loss
    stage.loss = lambda batch: loss(batch) + float("inf")
    before = stage.net.patches_out.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="step 0: the losses are not finite"):
        make_trainer(2, Gradients(clip=1.0)).fit(stage, datamodule=latents)
    assert torch.equal(stage.net.patches_out.weight, before)
