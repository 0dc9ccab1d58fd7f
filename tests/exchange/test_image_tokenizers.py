"""Facts about tokenizers of other libraries: the same codes, every weight used once, no code run."""

import sys
from collections.abc import Iterator

import dall_e
import diffusers
import pytest
import torch
from dall_e.utils import unmap_pixels
from torch import nn
from torch.testing import assert_close

from ldm.checkpoints.bundle import Bundle
from ldm.construct import construct
from ldm.exchange.image_tokenizers import (
    gumbel,
    learned_codebook,
    tokenizer_spec,
    two_level_rules,
    vqgan_rules,
)
from ldm.exchange.keymap import reverse, translate
from ldm.exchange.weights import Weights
from ldm.generators.code_bundle import open_codes
from ldm.models.convolutional_tokenizers import mapped
from ldm.models.picture_tokenizers import PictureTokenizer


def random(net: nn.Module) -> nn.Module:
    """Biases and gains start at 0 and 1, which would hide wrong names."""
    torch.manual_seed(4)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net.eval().requires_grad_(False)


@pytest.fixture
def images():
    torch.manual_seed(0)
    return 2 * torch.rand(2, 3, 32, 32) - 1


@pytest.fixture
def network(tiny):
    """`network(path)`: the tokenizer that a path is imported as."""

    def read(path, **options) -> PictureTokenizer:
        part = tiny(path, **options).parts["image_tokenizer"]
        net = construct(part.spec)
        net.load_state_dict(part.state)
        return net.eval()

    return read


@pytest.mark.parametrize("attends", [False, True])
def test_a_folder_of_diffusers_has_the_same_codes_and_pictures(network, tmp_path, images, attends):
    theirs = random(
        diffusers.VQModel(
            block_out_channels=(32, 64),
            down_block_types=("DownEncoderBlock2D", "Attn" * attends + "DownEncoderBlock2D"),
            up_block_types=("Attn" * attends + "UpDecoderBlock2D", "UpDecoderBlock2D"),
            layers_per_block=1,
            latent_channels=8,
            num_vq_embeddings=16,
            vq_embed_dim=6,
            norm_num_groups=8,
        )
    )
    theirs.save_pretrained(tmp_path / "vq")
    net = network(tmp_path / "vq")
    latents = theirs.encode(images).latents
    _, _, (_, _, codes) = theirs.quantize(latents)
    (ours,) = net.quantize(images)
    assert torch.equal(ours.codes.flatten(), codes)
    assert_close(net.features(images), latents, rtol=0, atol=1e-5)
    assert_close(net.render([ours.values]), theirs.decode(latents).sample, rtol=0, atol=1e-5)
    assert net.size == 256


CHANNELS, LEVELS, BLOCKS = 32, 3, 2


def taming(quantizer: list[str]) -> Iterator[str]:
    """The names of taming-transformers' VQModel with attention at its lowest resolution."""

    def resnet(name: str, widens: bool = False) -> Iterator[str]:
        layers = ["norm1", "conv1", "norm2", "conv2"] + ["nin_shortcut"] * widens
        yield from (f"{name}.{layer}" for layer in layers)

    def attention(name: str) -> Iterator[str]:
        yield from (f"{name}.{layer}" for layer in ("norm", "q", "k", "v", "proj_out"))

    layers = ["quant_conv", "post_quant_conv", *quantizer]
    for side, way, blocks in (("encoder", "down", BLOCKS), ("decoder", "up", BLOCKS + 1)):
        layers += [f"{side}.{name}" for name in ("conv_in", "norm_out", "conv_out")]
        layers += [*resnet(f"{side}.mid.block_1"), *attention(f"{side}.mid.attn_1")]
        layers += resnet(f"{side}.mid.block_2")
        for level in range(LEVELS):
            for block in range(blocks):
                # the widths 32, 64, 128: an encoder widens where a level begins, a decoder narrows there
                changes = block == 0 and level != (0 if way == "down" else LEVELS - 1)
                layers += resnet(f"{side}.{way}.{level}.block.{block}", changes)
                layers += attention(f"{side}.{way}.{level}.attn.{block}") if level == LEVELS - 1 else []
        changing = range(LEVELS - 1) if way == "down" else range(1, LEVELS)
        layers += [f"{side}.{way}.{level}.{way}sample.conv" for level in changing]
    yield from (f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias"))


TRUNK = {
    "channels": CHANNELS,
    "multipliers": [1, 2, 4],
    "blocks_per_level": BLOCKS,
    "mid_attention": True,
    "level_attention": [False, False, True],
}


@pytest.mark.parametrize(
    ("quantizer", "extra", "layers"),
    [
        (learned_codebook(16, 6), ["quantize.embedding.weight"], []),
        (gumbel(16, channels=6, dim=6), ["quantize.embed.weight"], ["quantize.proj"]),
    ],
    ids=["plain", "gumbel"],
)
def test_a_checkpoint_of_taming_is_read_whole(network, tmp_path, images, quantizer, extra, layers):
    """No taming-transformers here: its names are listed, and the file is ours under these."""
    net = random(construct(tokenizer_spec(TRUNK, features=8, size=32, quantizer=quantizer)))
    rules = vqgan_rules(TRUNK["level_attention"], is_gumbel=bool(layers))
    state = translate(net.state_dict(), reverse(rules))
    assert state.keys() == {*taming(layers), *extra}
    content = {"state_dict": state | {"loss.discriminator.main.0.weight": torch.ones(3)}, "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    read = network(tmp_path / "last.ckpt")
    assert read.size == 256
    for name, tensor in net.state_dict().items():
        if not name.endswith("counts"):
            assert torch.equal(read.state_dict()[name], tensor), name
    (ours,), (found,) = net.quantize(images), read.quantize(images)
    assert torch.equal(found.codes, ours.codes)


def strided(name: str, layers: list[int], blocks: list[int]) -> Iterator[str]:
    yield from (f"{name}.blocks.{number}" for number in layers)
    yield from (f"{name}.blocks.{number}.conv.{inner}" for number in blocks for inner in (1, 3))


def test_a_file_of_rosinality_is_read_whole(network, tmp_path, images):
    quantizer = {"_target_": "ldm.models.quantizers.VectorQuantizer", "num_codes": 16, "dim": 4}
    spec = {
        "_target_": "ldm.models.convolutional_tokenizers.TwoLevelTokenizer",
        **{"size": 256, "channels": 8, "residual_blocks": 2, "residual_channels": 3},
        **{"top": quantizer, "bottom": quantizer},
    }
    net = random(construct(spec))
    for level in (net.top, net.bottom):
        level.counts.uniform_(1, 2)
        level.sums.normal_()
    state = translate(net.state_dict(), reverse(list(two_level_rules(2))))
    layers = [
        *strided("enc_b", [0, 2, 4], [5, 6]),
        *strided("enc_t", [0, 2], [3, 4]),
        *strided("dec", [0, 4, 6], [1, 2]),
        *strided("dec_t", [0, 4], [1, 2]),
        *("quantize_conv_t", "quantize_conv_b", "upsample_t"),
    ]
    names = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    names |= {f"quantize_{level}.{x}" for level in "tb" for x in ("embed", "embed_avg", "cluster_size")}
    assert state.keys() == names
    assert state["quantize_t.embed"].shape == (4, 16)
    torch.save(state, tmp_path / "vqvae_560.pt")
    read = network(tmp_path / "vqvae_560.pt")
    assert all(torch.equal(read.state_dict()[name], tensor) for name, tensor in net.state_dict().items())
    assert read.levels == net.levels


@pytest.fixture
def openai(tmp_path):
    """OpenAI's two modules, and a folder with them pickled whole."""
    sizes = {"n_hid": 64, "vocab_size": 512, "n_blk_per_group": 1}
    encoder, decoder = random(dall_e.Encoder(**sizes)), random(dall_e.Decoder(n_init=16, **sizes))
    folder = tmp_path / "dall_e"
    folder.mkdir()
    torch.save(encoder, folder / "encoder.pkl")
    torch.save(decoder, folder / "decoder.pkl")
    return encoder, decoder, folder


def test_openais_pickles_have_the_same_codes_and_pictures(network, openai, images):
    encoder, decoder, folder = openai
    net = network(folder)
    logits = encoder(mapped(images))
    (ours,) = net.quantize(images)
    assert torch.equal(ours.codes, logits.argmax(dim=1))
    assert_close(net.quantizer.to_logits(net.features(images)), logits, rtol=0, atol=1e-5)
    one_hot = nn.functional.one_hot(ours.codes, 512).movedim(-1, 1).float()
    pictures = unmap_pixels(torch.sigmoid(decoder(one_hot)[:, :3]))
    assert_close(net.pictures(net.render([ours.values])), 2 * pictures - 1, rtol=0, atol=1e-5)


def test_openais_pickles_are_read_without_their_code(openai, monkeypatch):
    for name in ("dall_e", "dall_e.encoder", "dall_e.decoder", "dall_e.utils", "attr"):
        monkeypatch.setitem(sys.modules, name, None)  # whoever imports it gets an error
    read = Weights(openai[2] / "encoder.pkl").load()
    assert all(torch.equal(read[name], tensor) for name, tensor in openai[0].state_dict().items())
    assert len(read) == len(openai[0].state_dict())


def test_a_file_that_lacks_or_has_too_much_is_refused(tiny, openai, tmp_path):
    encoder, _, folder = openai
    encoder.blocks.group_2.block_1.register_parameter("extra", nn.Parameter(torch.ones(2)))
    torch.save(encoder, folder / "encoder.pkl")
    with pytest.raises(ValueError, match=r"unexpected encoder\.blocks\.group_2\.block_1\.extra"):
        tiny(folder)
    torch.save({"quantize.embedding.weight": torch.ones(4, 2)}, tmp_path / "few.pt")
    with pytest.raises(ValueError, match=r"few\.pt lacks the matrix encoder\.conv_in\.weight"):
        tiny(tmp_path / "few.pt")


def test_a_bundle_is_written_and_opened(tiny, bundle_of, openai):
    net = open_codes(Bundle.open(bundle_of(openai[2], typed={"size"}))).net
    assert net.size == tiny(openai[2], typed={"size"}).parts["image_tokenizer"].spec["size"]
    assert net.encode(torch.zeros(1, 3, net.size, net.size)).shape == (1, (net.size // 8) ** 2)
