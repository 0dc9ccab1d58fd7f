"""Facts about the codec."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from ldm.codec import to_float, to_uint8
from ldm.models.vae import AutoencoderKL


@pytest.fixture
def images():
    return torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_every_level_survives_the_way_to_float_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    floats = to_float(levels)
    assert (floats.min(), floats.max()) == (-1, 1)
    assert torch.equal(to_uint8(floats), levels)


def test_floats_are_rounded_to_the_nearest_level_and_clipped():
    values = torch.tensor([-9.0, -1.0, -0.9999, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1, 1.0, 9.0])
    images = values.view(1, 1, 1, 7).expand(1, 3, 1, 7)
    assert to_uint8(images)[0, 0, 0].tolist() == [0, 0, 0, 0, 1, 255, 255]


def test_scaled_latents_are_the_autoencoders_shifted_and_scaled(codec, images):
    plain = codec.autoencoder.posterior(to_float(images))
    scaled = codec.encode_images(images)
    shift, scale = (v.view(1, -1, 1, 1) for v in (codec.latent_shift, codec.latent_scale))
    assert_close(scaled.mean, (plain.mean - shift) * scale)
    assert_close(scaled.std, plain.std * scale)


def test_decoding_undoes_the_scale(codec, images):
    mean = codec.autoencoder.posterior(to_float(images)).mean
    expected = to_uint8(codec.autoencoder.decode(mean))
    decoded = codec.decode(codec.encode_images(images).mean)
    # rounding in the scale may carry a value over the border between two levels
    assert (decoded.int() - expected.int()).abs().max() <= 1


def test_noise_is_scaled_as_the_latents_are(codec, images):
    noise = torch.randn(3, 4, 4, 4)
    drawn = codec.encode_images(images).sample(noise)
    plain = codec.autoencoder.posterior(to_float(images)).sample(noise)
    shift, scale = (v.view(1, -1, 1, 1) for v in (codec.latent_shift, codec.latent_scale))
    assert_close(drawn, (plain - shift) * scale)


def test_prompts_become_states_one_row_each(codec):
    states = codec.encode_prompts(["red apple", "", "猫 🐈 <|endoftext|>"])
    assert states.shape == (3, 16, 16)
    assert states.dtype == torch.float32
    assert_close(states[1:2], codec.encode_prompts([""]))


def test_the_networks_are_frozen_and_no_output_needs_a_gradient(codec, images):
    assert not any(p.requires_grad for p in codec.autoencoder.parameters())
    assert not codec.text_encoder.training
    for output in (codec.encode_images(images).mean, codec.encode_prompts(["a"])):
        assert not output.requires_grad


def test_shapes_follow_the_factor_and_other_sizes_are_refused(codec):
    assert isinstance(codec.autoencoder, AutoencoderKL)
    assert codec.latent_shape(16) == (4, 4, 4)
    assert codec.latent_shape(64) == (4, 16, 16)
    with pytest.raises(ValueError, match="18 pixels is not a multiple of the autoencoder's factor 4"):
        codec.latent_shape(18)


def test_fingerprints_cover_all_that_decides_and_no_more(codec, tokenizer, build_network, specs):
    other = type(tokenizer)(tokenizer.merges[:-1], vocab_size=640, context_length=16, pad_id=tokenizer.pad_id)
    network = build_network(specs["autoencoder"], 0)
    network.load_state_dict(codec.autoencoder.state_dict())
    assert replace(codec, autoencoder=network).picture_fingerprint() == codec.picture_fingerprint()
    next(network.parameters()).data.view(-1)[0] += 1
    of_pictures = [
        replace(codec, latent_shift=codec.latent_shift + 1),
        replace(codec, latent_scale=codec.latent_scale * 2),
        replace(codec, autoencoder=network),
    ]
    of_texts = [
        replace(codec, tokenizer=other),
        replace(codec, text_encoder=build_network(specs["text_encoder"], 9)),
    ]
    assert len({each.picture_fingerprint() for each in [codec, *of_pictures]}) == 4
    assert len({each.text_fingerprint() for each in [codec, *of_texts]}) == 3
    assert {each.text_fingerprint() for each in of_pictures} == {codec.text_fingerprint()}
    assert {each.picture_fingerprint() for each in of_texts} == {codec.picture_fingerprint()}
