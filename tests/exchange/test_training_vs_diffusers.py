"""The comparison of benchmarks/training_vs_diffusers.py at toy size: both sides train the same network."""

import json
from copy import deepcopy

import diffusers
import pytest
import torch

from benchmarks.diffusers_recipe import Encoded, Recipe, Training
from benchmarks.problem_sizes import EVERY, TOY
from benchmarks.training_vs_diffusers import SIDES, rehearse, table
from ldm.models.attention import TransformerSpec
from ldm.models.unet import UNet


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory):
    """The folder of a rehearsal and its documents."""
    folder = tmp_path_factory.mktemp("training")
    return folder, rehearse(folder)


def test_each_case_has_the_seconds_of_both_sides_and_their_ratio(rehearsed):
    folder, documents = rehearsed
    for document in documents:
        assert {side: len(own) for side, own in document["seconds"].items()} == dict.fromkeys(SIDES, 2)
        assert document["ratio"] == document["median"]["ours"] / document["median"]["diffusers"]
        assert document["config"]["init"] == str(folder / "bundle")
    assert len(table(documents).splitlines()) == 2 + len(documents)


def test_turns_that_the_log_has_are_not_made_again(rehearsed):
    folder, documents = rehearsed
    log = (folder / "turns.jsonl").read_text()
    assert len(log.splitlines()) == 4
    assert rehearse(folder) == json.loads(json.dumps(documents))
    assert (folder / "turns.jsonl").read_text() == log


@pytest.mark.parametrize("name", EVERY)
def test_both_networks_of_a_size_have_the_same_number_of_weights(name):
    size = EVERY[name]
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**size.unet())
        ours = UNet(**size.backbone(), transformer=TransformerSpec(**size.transformer()))
    counts = [sum(parameter.numel() for parameter in net.parameters()) for net in (ours, theirs)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow"])
def test_the_target_of_the_recipe_leads_from_noisy_latents_to_clean_ones(prediction):
    net = torch.nn.Conv2d(1, 1, 1)
    net.config = {}
    training = Training(net, Recipe(prediction=prediction, snr_gamma=5.0))
    clean = torch.randn(64, 4, 2, 2)
    noisy, times, target, weight = training.task(clean)
    if prediction == "flow":
        share = (times / 1000).view(-1, 1, 1, 1)
        found, expected = noisy - share * target, torch.ones(64)
    else:
        kept = training.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        is_v, ratio = prediction == "v_prediction", (kept / (1 - kept)).flatten()
        found = (noisy - (1 - kept).sqrt() * target) / kept.sqrt()
        if is_v:
            found = kept.sqrt() * noisy - (1 - kept).sqrt() * target
        expected = ratio.clamp(max=5.0) / (ratio + 1 if is_v else ratio)  # Hang et al. 2023, sec. 3.4
    torch.testing.assert_close(found, clean, atol=2e-4, rtol=1e-3)  # late timesteps divide by 0.07
    torch.testing.assert_close(weight, expected)


def test_a_training_of_the_recipe_continues_from_its_state():
    def make():
        torch.manual_seed(0)
        return Training(diffusers.UNet2DConditionModel(**TOY.unet()), Recipe())

    batch = Encoded(torch.randn(2, 4, 8, 8), torch.randn(2, 77, 32))
    one, other = make(), make()
    one.step(batch)
    other.load_state_dict(deepcopy(one.state_dict()))
    torch.manual_seed(1)
    expected = one.step(batch)
    torch.manual_seed(1)
    assert other.step(batch) == expected
    averages = zip(one.ema.shadow_params, other.ema.shadow_params, strict=True)
    assert all(torch.equal(*pair) for pair in averages)
