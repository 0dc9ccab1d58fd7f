"""Facts about tokenizers of pictures: OpenAI's layers, densities of pixels, levels, sizes."""

from copy import deepcopy
from functools import partial
from typing import Any

import dall_e
import diffusers
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.testing import assert_close
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from ldm import NotFinite, UserError
from ldm.construct import construct
from ldm.models.convolutional_tokenizers import (
    DiscreteVAE,
    PlainTokenizer,
    TwoLevelTokenizer,
    logit_laplace,
    mapped,
)
from ldm.models.meta_init import meta_init
from ldm.models.picture_tokenizers import CodeLevel, Trunk, VQAutoencoder
from ldm.models.quantizers import FiniteScalarQuantizer, GumbelQuantizer, VectorQuantizer
from tests.fixtures import CONF


def vq(dim: int = 8) -> VectorQuantizer:
    return VectorQuantizer(num_codes=16, dim=dim)


def gumbel(channels: int, dim: int = 16, num_codes: int = 512) -> GumbelQuantizer:
    zero = lambda step: 0.0  # noqa: E731
    return GumbelQuantizer(
        channels=channels, num_codes=num_codes, dim=dim, temperature=zero, divergence_weight=zero
    )


SIZES = {"channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "norm_groups": 4}
TRUNK = Trunk(**SIZES, level_attention=[False, True])
NETWORKS = {
    "vq": partial(VQAutoencoder, trunk=TRUNK, features=6, quantizer=vq()),
    "fsq": partial(VQAutoencoder, trunk=TRUNK, features=6, quantizer=FiniteScalarQuantizer(levels=[4, 3])),
    "dvae": partial(DiscreteVAE, channels=4, multipliers=[1, 2, 4], blocks_per_group=1, quantizer=gumbel(16)),
    "plain": partial(PlainTokenizer, channels=8, halvings=2, quantizer=vq()),
    "two levels": partial(
        TwoLevelTokenizer, channels=8, residual_blocks=1, residual_channels=4, top=vq(), bottom=vq()
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_features_that_overflow_get_no_codes(name):
    net = deepcopy(NETWORKS[name](size=16))
    for parameter in net.parameters():
        parameter.data *= 1e30
    with pytest.raises(NotFinite, match="the features of pictures are NaN or infinite"):
        net.encode(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_are_encoders_and_decoders(name):
    """What quantizers are given in training, noise and a step, would be compiled again at every step."""
    net = deepcopy(NETWORKS[name](size=16))
    net.compile(backend="eager")
    compiled = {own for own, module in net.named_modules() if module._compiled_call_impl is not None}
    two = {"encoder_bottom", "encoder_top", "decoder_top", "decoder"}
    assert compiled == (two if name == "two levels" else {"encoder", "decoder"})


@pytest.mark.parametrize("name", NETWORKS)
def test_decoding_the_codes_is_the_reconstruction_to_the_bit(name):
    net = NETWORKS[name](size=16).eval()
    images = 2 * torch.rand(3, 3, 16, 16) - 1
    codes = net.encode(images)
    assert codes.shape == (3, net.length)
    assert torch.equal(net.decode(codes), net.reconstruct(images))
    assert net.reconstruct(images).shape == images.shape
    assert [part.shape[1] for part in net.split(codes)] == [grid for grid, _ in net.levels]
    assert net.levels[-1].grid * net.factor == 16


def test_the_two_levels_lie_one_after_the_other_the_coarse_one_first():
    net = NETWORKS["two levels"](size=16)
    assert net.levels == (CodeLevel(2, 16), CodeLevel(4, 16))
    images = 2 * torch.rand(2, 3, 16, 16) - 1
    top, bottom = net.split(net.encode(images))
    quantized = net.quantize(images)
    assert torch.equal(top, quantized[0].codes)
    assert torch.equal(bottom, quantized[1].codes)
    with pytest.raises(UserError, match="has 2 levels of codes, and this system needs one"):
        _ = net.grid


def test_the_density_of_a_pixel_integrates_to_1():
    """DALL-E 1, over pixels in (0, 1): by the trapezoidal rule on the logit's axis, exact to 1e-6."""
    logits = torch.linspace(-40, 40, 400_001, dtype=torch.float64)
    slope = torch.sigmoid(logits) * torch.sigmoid(-logits)  # d pixel / d logit
    for mean, scale in ((0.0, 1.0), (-1.5, 0.3), (2.0, 0.7)):
        density = torch.exp(-(logits - mean).abs() / scale) / (2 * scale * slope)
        mass = torch.trapezoid(density * slope, logits)
        assert_close(mass, torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-6)
        image = torch.full((1, 3, 1, 1), 0.3)
        maps = torch.tensor([mean] * 3 + [scale] * 3).view(1, 6, 1, 1)
        maps[:, 3:] = maps[:, 3:].log()
        at = (torch.logit(mapped(image)[0, 0, 0, 0].double()) - logits).abs().argmin()
        assert_close(logit_laplace(maps, image).double(), -density[at].log(), rtol=0, atol=1e-3)


@pytest.fixture
def dvae() -> DiscreteVAE:
    torch.manual_seed(3)
    net = DiscreteVAE(
        size=32, channels=64, multipliers=[1, 2, 4, 8], blocks_per_group=1, quantizer=gumbel(512)
    )
    for parameter in net.parameters():  # biases start at 0, which would hide a wrong name
        nn.init.normal_(parameter, std=0.05)
    return net


def test_the_encoder_is_flavas_codebook(dvae):
    config = FlavaImageCodebookConfig(num_groups=4, num_blocks_per_group=1, hidden_size=64, vocab_size=512)
    theirs = FlavaImageCodebook(config)
    theirs.load_state_dict(flava_names(dvae.state_dict()))
    images = 2 * torch.rand(2, 3, 32, 32) - 1
    assert torch.equal(theirs.get_codebook_indices(mapped(images)).flatten(1), dvae.encode(images))
    logits = dvae.quantizer.to_logits(dvae.features(images))
    assert_close(theirs(mapped(images)), logits, rtol=0, atol=1e-6)


def flava_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in state.items():
        if name.startswith("encoder.conv_in"):
            found["blocks.input" + name.removeprefix("encoder.conv_in")] = tensor
        elif name.startswith("quantizer.to_logits"):
            found["blocks.output.conv" + name.removeprefix("quantizer.to_logits")] = tensor
        elif name.startswith("encoder.groups"):
            _, _, place, kind, *rest = name.split(".")
            block = f"blocks.group_{int(place) // 2 + 1}.group.block_1"
            if kind == "shortcut":
                found[f"{block}.id_path.{rest[0]}"] = tensor
            else:
                found[f"{block}.res_path.path.conv_{int(rest[0]) + 1}.{rest[1]}"] = tensor
    return found


def preset(name: str) -> Any:
    """A tokenizer of conf/image_tokenizer for pictures of 256 px, without weights."""
    node = OmegaConf.load(CONF / "image_tokenizer" / f"{name}.yaml")
    node.data = {"size": 256}
    spec = OmegaConf.to_container(node, resolve=True)
    del spec["data"]
    with meta_init():
        return construct(spec)


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_papers_size_has_as_many_parameters_as_openais():
    net = preset("dvae_f8")
    device = torch.device("meta")
    theirs = count(dall_e.Encoder(device=device)) + count(dall_e.Decoder(device=device))
    assert count(net) == theirs - 128  # no bias after the one-hot codes: it is part of the codes' vectors
    assert net.levels == (CodeLevel(32, 8192),)


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("vqgan_f16", [(16, 16384)]),
        ("gumbel_f8", [(32, 8192)]),
        ("cogview_f8", [(32, 8192)]),
        ("vqvae2", [(32, 512), (64, 512)]),
    ],
)
def test_the_papers_sizes_have_their_grids(name, levels):
    assert [tuple(level) for level in preset(name).levels] == levels


def test_the_vqgan_has_as_many_parameters_as_the_one_of_diffusers():
    with torch.device("meta"):
        theirs = diffusers.VQModel(
            block_out_channels=(128, 128, 256, 256, 512),
            down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
            up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=256,
            num_vq_embeddings=16384,
        )
    assert count(preset("vqgan_f16")) == count(theirs)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="size=20 is not a multiple of its factor=8"):
        NETWORKS["two levels"](size=20)
    with pytest.raises(UserError, match="one entry for each of 2 levels"):
        VQAutoencoder(size=16, trunk=Trunk(**SIZES, level_attention=[True]), features=6, quantizer=vq())
    with pytest.raises(UserError, match=r"top\.dim=8 that of bottom, 4"):
        TwoLevelTokenizer(size=16, channels=8, residual_blocks=1, residual_channels=4, top=vq(), bottom=vq(4))
