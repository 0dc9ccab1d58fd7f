"""Facts about what a training is said to take before it is started."""

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from ldm.config import CONF
from ldm.construct import construct
from ldm.planning.dry_run import dry_run, made_up_stage
from ldm.planning.trial import MARGIN, Held, Meter, Trial, Trier, num_bytes, set_checkpointing

SMALL = {
    "emoji": ["backbone=dit_tiny", "backbone.depth=1", "backbone.long_skips=false"],
    "emoji_vae": ["autoencoder.channels=8"],
    "emoji_clip": ["text_encoder.num_layers=2", "image_encoder.num_layers=2"],
}
FLOAT = 4  # bytes


def composed(*overrides: str):
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("train", overrides=list(overrides))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture
def trier(diffusion_stage, make_trainer, specs) -> Trier:
    def trainer(*, callbacks, max_steps):
        return make_trainer(max_steps, *callbacks, precision="32-true")

    stage = diffusion_stage(net=construct(specs["backbone"]))
    return Trier(stage=stage, make_trainer=trainer, size=16, batch_size=2, memory=2**30)


@pytest.mark.parametrize("experiment", SMALL)
def test_every_stage_is_tried_without_data_and_nothing_is_written(experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(composed(f"+experiment={experiment}", *SMALL[experiment], "batch_size=2", "data.root=nowhere"))
    printed = capsys.readouterr().out
    for words in (
        "parameters\n",
        "held all the time\n",
        "per sample",
        "largest micro-batch",
        "80 GB",
    ):
        assert words in printed
    assert list(tmp_path.iterdir()) == []


def test_a_codec_that_was_not_trained_yet_is_made_up_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    paths = ["codec.autoencoder=runs/none", "codec.text_encoder=shipped"]
    dry_run(composed("+experiment=emoji", *SMALL["emoji"], "batch_size=1", *paths))
    printed = capsys.readouterr().out
    assert "autoencoder at random: there is no bundle at runs/none yet" in printed
    assert "text_encoder at random" not in printed


def test_what_is_too_large_for_the_machine_is_counted_and_not_tried(capsys):
    dry_run(composed("backbone=unet_sd15", "backbone.channels=6400"))
    printed = capsys.readouterr().out
    assert "not tried" in printed
    assert "at the peak of a step" not in printed


def test_held_bytes_are_those_of_the_closed_form(trier):
    _, held = trier.attempt(checkpointing=False, averages=1)
    net = trier.stage.net
    parameters = count(net)
    assert held.weights == held.gradients == held.average == FLOAT * parameters
    steps = len(list(net.parameters()))  # AdamW counts the steps of each tensor in a float32
    assert held.optimizer == 2 * FLOAT * parameters + FLOAT * steps
    assert held.frozen == FLOAT * sum(count(part) for part in trier.stage.frozen().values())
    assert held.together == 5 * FLOAT * parameters + FLOAT * steps + held.frozen


def test_checkpointing_takes_less_memory_and_more_work(trier):
    plain, _ = trier.attempt(checkpointing=False, averages=0)
    checkpointed, _ = trier.attempt(checkpointing=True, averages=0)
    assert checkpointed.sample < plain.sample
    assert (
        plain.operations < checkpointed.operations < 4 / 3 * plain.operations
    )  # one forward pass of three more
    assert plain.step < FLOAT * count(
        trier.stage.net
    )  # the gradients are counted with what is held, not here


def test_the_peak_for_three_samples_is_where_those_for_one_and_two_point(trier):
    trial, _ = trier.attempt(checkpointing=False, averages=0)
    observer, _ = trier.run((3,), metering=True)
    # 5 %: some operators need memory for the weights that overlaps with the samples' only where these are few
    assert observer.meters[0].peak == pytest.approx(trial.step + 3 * trial.sample, rel=0.05)


def test_the_micro_batch_is_the_largest_that_fits():
    held = Held(weights=100, gradients=100, optimizer=200, average=100, frozen=7)
    trial = Trial(checkpointing=False, step=13, sample=9, operations=1, count=1, speed=1.0, allocated=0)
    for memory in (100, 611, 1000, 12345):
        most = trial.fitting(held, memory)
        assert trial.need(held, most + 1) > MARGIN * memory
        assert most == 0 or trial.need(held, most) <= MARGIN * memory


def test_a_meter_counts_what_a_chain_of_layers_keeps():
    x, weight = torch.randn(8, 32), torch.randn(32, 32, requires_grad=True)
    with Meter() as meter:
        h = x
        for _ in range(5):
            h = torch.tanh(h @ weight)  # backward needs each tanh's output; the product's dies with it
    assert meter.peak == (5 + 1) * num_bytes([x])
    assert meter.operations == 5 * 2 * 8 * 32 * 32


def test_a_meter_forgets_what_dies_and_counts_no_views():
    x = torch.randn(1000)
    with Meter() as meter:
        for _ in range(10):
            y = (x + 1).view(10, 100).T
    assert y.shape == (100, 10)
    assert meter.peak == 2 * num_bytes([x])  # the next is made while the name still holds the last


def test_checkpointing_is_switched_in_every_part():
    with torch.device("meta"):
        stage, _ = made_up_stage(composed("+experiment=emoji_vae"))
    set_checkpointing(stage, True)
    parts = [*stage.net.encoder.levels, *stage.net.decoder.levels, stage.net.encoder.middle]
    assert all(part.checkpointing for part in parts)
