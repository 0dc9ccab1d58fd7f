"""Facts about the KL autoencoder."""

import math
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL as Reference
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.exchange.keymap import shapes, translate
from ldm.exchange.names import vae_rules
from ldm.models.vae import AutoencoderKL, Posterior

CONF = Path(__file__).parents[2] / "conf" / "autoencoder"


def tiny(**changes) -> AutoencoderKL:
    options = {
        "channels": 16,
        "multipliers": [1, 2, 2],
        "blocks_per_level": 1,
        "latent_channels": 3,
        "norm_groups": 8,
    }
    return AutoencoderKL(**(options | changes))


def reference(*, mid_attention: bool = True) -> Reference:
    return Reference(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[16, 32, 32],
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=8,
        mid_block_add_attention=mid_attention,
    ).eval()


@pytest.mark.parametrize("mid_attention", [True, False])
def test_equals_diffusers_with_the_same_weights(mid_attention):
    torch.manual_seed(0)
    theirs, ours = reference(mid_attention=mid_attention), tiny(mid_attention=mid_attention)
    ours.load_state_dict(translate(theirs.state_dict(), vae_rules(), expected=shapes(ours.state_dict())))
    images, latents = torch.randn(2, 3, 32, 24), torch.randn(2, 3, 8, 6)
    with torch.no_grad():
        posterior, expected = ours.posterior(images), theirs.encode(images).latent_dist
        assert_close(posterior.mean, expected.mean, atol=1e-5, rtol=0)
        assert_close(posterior.std, expected.std, atol=1e-5, rtol=0)
        assert_close(posterior.kl(), expected.kl(), atol=1e-3, rtol=1e-5)
        assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("preset", "parameters", "factor"),
    [
        ("kl_f8", 83_653_863, 8),
        ("kl_f4", 55_312_063, 4),
        ("kl_f8_tiny", 1_031_667, 8),
        ("kl_f4_tiny", 856_212, 4),
        ("kl_f8_patch_tiny", 1_347_020, 8),
    ],
)
def test_presets_have_their_sizes(preset, parameters, factor):
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{preset}.yaml"))
    assert options.pop("_target_") == "ldm.models.vae.AutoencoderKL"
    with torch.device("meta"):
        vae = AutoencoderKL(**options)
    assert sum(p.numel() for p in vae.parameters()) == parameters
    assert vae.factor == factor


def test_kl_is_zero_for_the_standard_normal_and_known_for_a_shifted_one():
    zero = torch.zeros(2, 3, 4, 4)
    assert Posterior(mean=zero, logvar=zero).kl().tolist() == [0, 0]
    assert_close(Posterior(mean=zero + 1, logvar=zero).kl(), torch.full((2,), 0.5 * 48))
    assert_close(Posterior(mean=zero, logvar=zero + math.log(4)).std, zero + 2)


def test_logvar_is_clamped_and_float32_under_autocast():
    vae = tiny()
    torch.nn.init.constant_(vae.to_moments.bias, 1e4)
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.posterior(torch.zeros(1, 3, 16, 16))
    assert posterior.logvar.unique().tolist() == [20]
    assert posterior.mean.dtype == torch.float32


def test_forward_reconstructs_in_the_shape_of_the_images():
    images, noise = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 4, 6)
    reconstruction, posterior = tiny()(images, noise)
    assert reconstruction.shape == images.shape
    assert posterior.mean.shape == noise.shape


def test_patches_fold_and_unfold_the_pixels():
    vae = tiny(patch=2, multipliers=[1, 2])
    images, noise = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 4, 6)
    assert vae.factor == 4
    assert vae(images, noise)[0].shape == images.shape
    assert vae.encoder.conv_in.weight.shape[1] == vae.decoder.conv_out.weight.shape[0] == 12


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiple of norm_groups=8"):
        tiny(multipliers=[1, 1.25])
    with pytest.raises(ValueError, match="multiples of 4"):
        tiny().posterior(torch.zeros(1, 3, 18, 16))
