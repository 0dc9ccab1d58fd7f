"""Facts about generation that is watched: the same bits, a report at each step, and how good previews are."""

import json

import pytest
import torch

from data_prep.emoji import ASSETS, read_samples
from ldm.checkpoints.bundle import Bundle
from ldm.data.decode import EncodedPicture, centre_square
from ldm.generators.diffusion_bundle import load_codec, open_latent_diffusion
from ldm.generators.generator import Source, open_generator
from ldm.generators.preview import coloured_shapes, fit_preview, watchable
from ldm.serve.worker import nodes_of

PROMPTS, SEEDS = ["red apple", "a cat with a hat"], [0, 1]
CALLS = {"ddim": 5, "heun": 9, "dpmpp_2m": 5, "dpmpp_2m_sde": 5, "pndm": 5, "edm": 9}  # of the denoiser


@pytest.fixture(scope="module")
def plain(bundle_path):
    return open_latent_diffusion(Bundle.open(bundle_path))


@pytest.fixture(scope="module")
def watched(plain):
    return watchable(plain)


@pytest.mark.parametrize("name", CALLS)
def test_watching_changes_no_bit_and_reports_each_call(plain, watched, name):
    options = nodes_of({"sampler": name}) | {"steps": 5}
    seen = []
    images = watched.with_options(**options)(PROMPTS, SEEDS, watch=seen.append)
    assert torch.equal(images, plain.with_options(**options)(PROMPTS, SEEDS))
    assert torch.equal(images, watched.with_options(**options)(PROMPTS, SEEDS))
    assert [(each.step, each.steps) for each in seen] == [(k + 1, CALLS[name]) for k in range(CALLS[name])]
    assert seen[-1].preview().shape == images.shape
    assert seen[-1].preview().dtype == torch.uint8


def test_the_steps_of_a_part_of_the_grid_are_counted(watched):
    seen = []
    source = Source(images=torch.zeros(2, 3, 16, 16, dtype=torch.uint8), strength=0.5)
    watched.with_options(steps=8)(PROMPTS, SEEDS, source=source, watch=seen.append)
    assert len(seen) == seen[0].steps < 8


def test_what_a_watch_raises_ends_the_sampling(watched):
    seen = []

    def stop(progress):
        seen.append(progress.step)
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched.with_options(steps=50)(PROMPTS, SEEDS, watch=stop)
    assert seen == [1, 2]


def test_the_last_preview_is_that_of_the_latents(watched):
    seen = []
    watched.with_options(**nodes_of({"sampler": "ddim"}) | {"steps": 3})(PROMPTS, SEEDS, watch=seen.append)
    latents = watched.with_options(**nodes_of({"sampler": "ddim"}) | {"steps": 3}).latents(PROMPTS, SEEDS)
    assert torch.equal(seen[-1].preview(), watched.preview(latents.float()))  # ddim ends at its last estimate


def r_squared(preview: torch.Tensor, decoded: torch.Tensor) -> float:
    """The share of the variance of decoded pixels, about each channel's mean, that previews explain."""
    wrong, right = preview.double(), decoded.double()
    spread = (right - right.mean(dim=(0, 2, 3), keepdim=True)).square().sum()
    return float(1 - (wrong - right).square().sum() / spread)


def test_a_preview_of_the_shipped_model_explains_nine_tenths_of_its_decoder(capsys):
    codec = load_codec(autoencoder="shipped", text_encoder="shipped")
    captions = json.loads((ASSETS / "captions.json").read_text())
    chosen = {key: captions[key] for key in list(captions)[::50]}
    images = torch.stack([centre_square(EncodedPicture(each.image), 64) for each in read_samples(chosen)])
    latents = codec.encode_images(images).mean
    found = r_squared(fit_preview(codec)(latents), codec.decode(latents))
    with capsys.disabled():
        print(f"\nR² of previews of {len(images)} emoji: {found:.3f}")
    assert found > 0.9


def test_a_fit_is_the_same_every_time_and_of_pictures_with_all_colours(codec):
    one, other = fit_preview(codec), fit_preview(codec)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)
    shapes = coloured_shapes(16)
    assert shapes.shape == (64, 3, 16, 16)
    assert shapes.float().std(dim=(0, 2, 3)).min() > 50


def test_what_is_watchable_stays_as_it_is(watched):
    assert watchable(watched) is watched


def test_an_opened_bundle_is_watchable_with_its_own_options(bundle_path):
    opened = open_generator(Bundle.open(bundle_path), steps=2)
    again = watchable(opened.generator)
    assert again.settings() == opened.generator.settings()
