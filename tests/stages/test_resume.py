"""A training stopped at any step and resumed equals the uninterrupted one to the bit."""

import shutil
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch

from benchmarks.chaos.equality import compared, differences
from benchmarks.chaos.resumes import AtBatch, EndedError, InSampling, InValidation, Seen
from ldm.callbacks.ema import EMA
from ldm.callbacks.gradients import Gradients
from ldm.callbacks.pictures import SampleGrid
from ldm.callbacks.saving import SaveStates
from ldm.checkpoints.training_state import newest_state, save_state
from ldm.data.augment import turns_and_colours
from ldm.data.latents import LatentData
from ldm.models.losses import PatchDiscriminator
from ldm.stages.autoencoder import AutoencoderStage, ScalesAndTurns
from ldm.stages.optim import warmup_cosine
from ldm.stages.terms import DiffusionWithTerms, LatentAlignment

STEPS = 12  # an epoch is five batches: of 20 pictures, 4 at a time


class Training(NamedTuple):
    """How a training ended."""

    state: dict[str, Any]
    positions: list[int]


@pytest.fixture
def train(make_trainer, tmp_path):
    """`train(stage, data, name, *callbacks)`: a training from its newest state, if it has one, to the end."""

    def run(stage, data, name, *callbacks, every=3, steps=STEPS, draws=False, **options) -> Training:
        folder, seen = tmp_path / name, Seen()
        sheets = [SampleGrid(prompts=["a cat"], seeds=[0], folder=tmp_path / "sheets")] if draws else []
        own = [EMA(decay=0.9), Gradients(clip=1.0), *sheets, seen, SaveStates(folder=folder, every=every)]
        trainer = make_trainer(steps, *own, *callbacks, **options)
        trainer.fit(stage, datamodule=data, ckpt_path=newest_state(folder), weights_only=True)
        return Training(torch.load(newest_state(folder), weights_only=True), seen.positions)

    return run


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Training]:
    """The trainings that `whole` has run, by their options: several tests compare with the same one."""
    return {}


@pytest.fixture
def whole(train, diffusion_stage, latents, uninterrupted):
    """`whole(**options)`: the uninterrupted training of the denoiser. Read it, never write to it."""

    def run(**options) -> Training:
        key = repr(sorted(options.items()))
        if key not in uninterrupted:
            uninterrupted[key] = train(diffusion_stage(), latents, "whole", **options)
        return uninterrupted[key]

    return run


@pytest.fixture
def train_with_stops(train):
    """`train_with_stops(make, data, name, *ends)`: the same, ended at each moment and started again."""

    def run(make, data, name, *ends, resumed=None, **options) -> Training:
        for end in ends:
            with pytest.raises(EndedError):
                train(make(), data(), name, end, **options)
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
        equivariance = ScalesAndTurns(smallest=0.5)
        return autoencoder_stage(
            discriminator=discriminator, discriminator_start=4, equivariance=equivariance
        )

    return make


EACH = {"every": 1}  # a state after every step, else after every third
VALIDATING = {"val_check_interval": 4, "limit_val_batches": 1}


@pytest.mark.parametrize(
    ("ends", "options"),
    [
        pytest.param([AtBatch(3)], {}, id="inside an epoch"),
        pytest.param([AtBatch(5)], {}, id="at an epoch's end"),
        pytest.param(
            [AtBatch(6), AtBatch(7), AtBatch(9), AtBatch(10)], {}, id="thrice in one, and at its end"
        ),
        pytest.param([AtBatch(8)], {"every": 5}, id="three steps after the last state"),
        pytest.param([AtBatch(7)], {"accumulate_grad_batches": 2, "steps": 6}, id="inside an accumulation"),
        pytest.param([AtBatch(8)], VALIDATING, id="after a validation"),
        pytest.param([InValidation(8)], VALIDATING, id="in a validation"),
        pytest.param([InValidation(8)], VALIDATING | EACH, id="in one right after a state"),
        pytest.param([InSampling(8)], VALIDATING | {"draws": True}, id="while drawing"),
    ],
)
def test_a_denoiser_resumes_exactly(whole, train_with_stops, diffusion_stage, pictures, codec, ends, options):
    whole = whole(**options)
    data = partial(LatentData, pictures=pictures, codec=codec)
    stopped = train_with_stops(diffusion_stage, data, "stopped", *ends, **options)
    assert differences(compared(whole.state), compared(stopped.state)) == []
    assert whole.state["global_step"] == options.get("steps", STEPS)
    assert stopped.positions == whole.positions[-len(stopped.positions) :]


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_another_number_of_loader_processes_changes_nothing(
    whole, train_with_stops, diffusion_stage, pictures, codec, before, after
):
    def data(num_workers: int) -> LatentData:
        pictures.num_workers = num_workers
        return LatentData(pictures=pictures, codec=codec)

    whole, numbers = whole(), iter((before, after))
    stopped = train_with_stops(diffusion_stage, lambda: data(next(numbers)), "stopped", AtBatch(7))
    assert differences(compared(whole.state), compared(stopped.state)) == []
    assert stopped.positions == whole.positions[-len(stopped.positions) :]


def test_the_projector_of_a_term_resumes_exactly(train, train_with_stops, diffusion_stage, pictures, codec):
    def stage() -> DiffusionWithTerms:
        return diffusion_stage(terms={"sra": partial(LatentAlignment, inner=8)})

    data = partial(LatentData, pictures=pictures, codec=codec)
    whole = train(stage(), data(), "whole", steps=6)
    stopped = train_with_stops(stage, data, "stopped", AtBatch(4), steps=6)
    assert "terms.sra.projector.0.weight" in whole.state["state_dict"]
    assert differences(compared(whole.state), compared(stopped.state)) == []


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


def test_another_seed_of_the_noise_is_noticed(whole, train_with_stops, diffusion_stage, latents):
    whole = whole()
    other = partial(diffusion_stage, seed=4)
    stopped = train_with_stops(diffusion_stage, lambda: latents, "stopped", AtBatch(11), resumed=other)
    different = differences(compared(whole.state), compared(stopped.state))
    assert "/state_dict/net.patches_out.weight" in different
    assert any(line.startswith("/callbacks/EMA") for line in different)
    assert any(line.startswith("/optimizer_states") for line in different)


def test_one_changed_bit_of_a_weight_is_noticed(train, diffusion_stage, latents, tmp_path):
    whole = train(diffusion_stage(), latents, "whole", steps=4)
    with pytest.raises(EndedError):
        train(diffusion_stage(), latents, "stopped", AtBatch(3), steps=4)
    state = torch.load(newest_state(tmp_path / "stopped"), weights_only=True)
    state["state_dict"]["net.patches_in.weight"].view(torch.int32).view(-1)[0] ^= 1
    shutil.rmtree(tmp_path / "stopped")
    save_state(tmp_path / "stopped", 3, partial(torch.save, state), keep=1)
    stopped = train(diffusion_stage(), latents, "stopped", steps=4)
    assert "/state_dict/net.patches_in.weight" in differences(compared(whole.state), compared(stopped.state))


@pytest.mark.parametrize("batch", [3, 7])  # before and after the adversary joins
def test_an_autoencoder_and_its_adversary_resume_exactly(
    train, train_with_stops, adversarial_stage, pictures, batch
):
    whole = train(adversarial_stage(), pictures, "whole")
    stopped = train_with_stops(adversarial_stage, lambda: pictures, "stopped", AtBatch(batch))
    assert differences(compared(whole.state), compared(stopped.state)) == []
    assert whole.state["global_step"] == STEPS
    assert stopped.positions == whole.positions[-len(stopped.positions) :]


def test_an_autoencoder_resumes_exactly(train, train_with_stops, autoencoder_stage, pictures):
    make = partial(autoencoder_stage, equivariance=ScalesAndTurns())
    whole = train(make(), pictures, "whole")
    stopped = train_with_stops(make, lambda: pictures, "stopped", AtBatch(6))
    assert differences(compared(whole.state), compared(stopped.state)) == []
