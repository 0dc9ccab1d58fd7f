"""A training stopped at any step and resumed equals the uninterrupted one to the bit."""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from pytorch_lightning import Callback

from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.store import newest_state, save_state
from ldm.data.augment import turns_and_colours
from ldm.data.latents import LatentData
from ldm.models.discriminator import PatchDiscriminator
from ldm.stages.autoencoder import AutoencoderStage
from ldm.stages.optim import warmup_cosine

STEPS = 12  # an epoch is five batches: of 20 pictures, 4 at a time


class KilledError(Exception):
    """What stands for a lost process."""


class Killed(Callback):
    """Dies when the given batch begins."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == self.batch:
            raise KilledError


class Seen(Callback):
    """The position of every sample that was trained on."""

    def __init__(self) -> None:
        self.positions: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.positions += batch["position"].tolist()


class Training(NamedTuple):
    """How a training ended."""

    state: dict[str, Any]
    positions: list[int]


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two nested states are not equal to the bit."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        return [line for key in ours for line in differences(ours[key], theirs[key], f"{path}/{key}")]
    if isinstance(ours, list | tuple) and len(ours) == len(theirs):
        return [line for i in range(len(ours)) for line in differences(ours[i], theirs[i], f"{path}/{i}")]
    if isinstance(ours, torch.Tensor):
        return [] if ours.dtype == theirs.dtype and torch.equal(ours, theirs) else [path]
    return [] if ours == theirs else [path]


def compared(state: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: weights, averages, moments, learning rates, step and place in the stream."""
    names = ("state_dict", "callbacks", "optimizer_states", "lr_schedulers", "global_step")
    stream = state["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    return {name: state[name] for name in names} | {"stream": stream}


@pytest.fixture
def train(make_trainer, tmp_path):
    """`train(stage, data, name, ...)`: a training from its newest state, if it has one, to the end."""

    def run(stage, data, name, *, every=1, killed=None, steps=STEPS, **options) -> Training:
        folder, seen = tmp_path / name, Seen()
        callbacks = [EMA(decay=0.9), Gradients(clip=1.0), seen, SaveStates(folder=folder, every=every)]
        trainer = make_trainer(steps, *callbacks, *([Killed(killed)] if killed else []), **options)
        trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return Training(torch.load(newest_state(folder), weights_only=True), seen.positions)

    return run


@pytest.fixture
def train_with_stop(train):
    """`train_with_stop(make, data, name, killed=k)`: the same, dying at batch k and started again."""

    def run(make, data, name, *, killed, resumed=None, **options) -> Training:
        with pytest.raises(KilledError):
            train(make(), data(), name, killed=killed, **options)
        return train((resumed or make)(), data(), name, **options)

    return run


@pytest.fixture
def autoencoder_stage(build_network, specs, adamw):
    def make(**options) -> AutoencoderStage:
        defaults = {
            "kl_weight": 1e-4,
            "augment": turns_and_colours,
            "decay": partial(warmup_cosine, warmup=3, steps=STEPS),
            "seed": 2,
        }
        return AutoencoderStage(
            net=build_network(specs["autoencoder"], 11), optimizer=adamw, **(defaults | options)
        )

    return make


@pytest.fixture
def adversarial_stage(autoencoder_stage):
    def make() -> AutoencoderStage:
        torch.manual_seed(1)
        discriminator = PatchDiscriminator(channels=4, layers=1)
        return autoencoder_stage(discriminator=discriminator, discriminator_start=4)

    return make


@pytest.mark.parametrize(
    ("killed", "options"),
    [
        pytest.param(3, {}, id="inside an epoch"),
        pytest.param(5, {}, id="at an epoch's end"),
        pytest.param(8, {"every": 5}, id="three steps after the last state"),
        pytest.param(7, {"accumulate_grad_batches": 2, "steps": 6}, id="inside an accumulation"),
        pytest.param(8, {"val_check_interval": 4, "limit_val_batches": 1}, id="after validations"),
    ],
)
def test_a_denoiser_resumes_exactly(train, train_with_stop, diffusion_stage, pictures, killed, options):
    data = partial(LatentData, pictures=pictures)
    whole = train(diffusion_stage(), data(), "whole", **options)
    stopped = train_with_stop(diffusion_stage, data, "stopped", killed=killed, **options)
    assert differences(compared(whole.state), compared(stopped.state)) == []
    assert whole.state["global_step"] == options.get("steps", STEPS)
    assert stopped.positions == whole.positions[-len(stopped.positions) :]


def test_a_finished_training_goes_on_when_it_is_given_more_steps(train, diffusion_stage, latents):
    whole = train(diffusion_stage(), latents, "whole", steps=9)
    train(diffusion_stage(), latents, "extended", steps=5)
    extended = train(diffusion_stage(), latents, "extended", steps=9)
    assert differences(compared(whole.state), compared(extended.state)) == []
    assert extended.positions == whole.positions[-len(extended.positions) :]
    assert len(extended.positions) == 4 * 4


def test_a_finished_training_takes_no_further_step(train, diffusion_stage, latents):
    first = train(diffusion_stage(), latents, "whole", steps=5)
    again = train(diffusion_stage(), latents, "whole", steps=5)
    assert again.positions == []
    assert differences(compared(first.state), compared(again.state)) == []


def test_another_seed_of_the_noise_is_noticed(train, train_with_stop, diffusion_stage, latents):
    whole = train(diffusion_stage(), latents, "whole")
    stopped = train_with_stop(
        diffusion_stage, lambda: latents, "stopped", killed=11, resumed=partial(diffusion_stage, seed=4)
    )
    different = differences(compared(whole.state), compared(stopped.state))
    assert "/state_dict/net.conv_out.weight" in different
    assert any(line.startswith("/callbacks/EMA") for line in different)
    assert any(line.startswith("/optimizer_states") for line in different)


def test_one_changed_value_of_a_state_is_noticed(train, diffusion_stage, latents, tmp_path):
    whole = train(diffusion_stage(), latents, "whole", steps=4)
    with pytest.raises(KilledError):
        train(diffusion_stage(), latents, "stopped", steps=4, killed=3)

    def change(path) -> None:
        state = torch.load(newest_state(tmp_path / "stopped"), weights_only=True)
        state["state_dict"]["net.conv_in.weight"].view(-1)[0] += 1e-3
        torch.save(state, path)

    save_state(tmp_path / "stopped", 3, change, keep=1)
    stopped = train(diffusion_stage(), latents, "stopped", steps=4)
    assert "/state_dict/net.conv_in.weight" in differences(compared(whole.state), compared(stopped.state))


@pytest.mark.parametrize("killed", [3, 7])  # before and after the adversary joins
def test_an_autoencoder_and_its_adversary_resume_exactly(
    train, train_with_stop, adversarial_stage, pictures, killed
):
    whole = train(adversarial_stage(), pictures, "whole")
    stopped = train_with_stop(adversarial_stage, lambda: pictures, "stopped", killed=killed)
    assert differences(compared(whole.state), compared(stopped.state)) == []
    assert whole.state["global_step"] == STEPS
    assert stopped.positions == whole.positions[-len(stopped.positions) :]


def test_an_autoencoder_resumes_exactly(train, train_with_stop, autoencoder_stage, pictures):
    whole = train(autoencoder_stage(), pictures, "whole")
    stopped = train_with_stop(autoencoder_stage, lambda: pictures, "stopped", killed=6)
    assert differences(compared(whole.state), compared(stopped.state)) == []
