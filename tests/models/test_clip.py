"""Facts about CLIP: agreement with open_clip, sizes, loss."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.testing import assert_close

from ldm.construct import construct
from ldm.exchange.keymap import shapes, translate
from ldm.exchange.names import openclip_rules
from ldm.models.clip import (
    CLIP,
    TextTransformer,
    VisionTransformer,
    contrastive_loss,
    gelu,
    quick_gelu,
)

CONF = Path(__file__).parents[2] / "conf"
VOCAB_SIZE, CONTEXT_LENGTH = 600, 12


def tiny(activation=gelu) -> CLIP:
    torch.manual_seed(0)
    layers = partial(dict, width=32, num_layers=3, num_heads=4, embed_dim=24, activation=activation)
    return CLIP(
        text=TextTransformer(vocab_size=VOCAB_SIZE, context_length=CONTEXT_LENGTH, **layers()),
        image=VisionTransformer(image_size=16, patch_size=8, **layers()),
    )


def tokens(count: int, pad_id: int = 0) -> torch.Tensor:
    """Random texts of different lengths."""
    ids = torch.randint(1, VOCAB_SIZE - 2, (count, CONTEXT_LENGTH))
    for row, length in zip(ids, torch.arange(count) % (CONTEXT_LENGTH - 2) + 1, strict=True):
        row[0], row[length + 1], row[length + 2 :] = VOCAB_SIZE - 2, VOCAB_SIZE - 1, pad_id
    return ids


def pictures(count: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16) * 2 - 1


def preset(group: str, name: str) -> dict:
    spec = yaml.safe_load((CONF / group / f"{name}.yaml").read_text())
    return {key: 128 if "text_encoder.embed_dim" in str(value) else value for key, value in spec.items()}


def built(text: str, image: str) -> CLIP:
    with torch.device("meta"):
        return CLIP(
            text=construct(preset("text_encoder", text)), image=construct(preset("image_encoder", image))
        )


def size(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("text", "image", "parameters"),
    [
        ("clip_vit_b32", "clip_vit_b32", 151_277_313),
        ("clip_vit_l14", "clip_vit_l14", 427_616_513),
    ],
)
def test_the_published_sizes(text, image, parameters):
    assert size(built(text, image)) == parameters


def test_the_text_encoder_of_stable_diffusion():
    with torch.device("meta"):
        assert size(construct(preset("text_encoder", "sd15"))) == 123_060_480


def test_the_tiny_preset_has_twelve_layers_and_fits_two_cores():
    net = built("clip_tiny", "clip_tiny")
    assert len(net.text.blocks) == 12
    assert size(net.text) == 2_662_144
    assert size(net.image) == 1_239_552


def test_both_encoders_agree_with_open_clip():
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(5)
    theirs = open_clip.CLIP(
        embed_dim=24,
        vision_cfg={"image_size": 16, "patch_size": 8, "width": 32, "layers": 3, "head_width": 8},
        text_cfg={"vocab_size": 600, "context_length": 12, "width": 32, "layers": 3, "heads": 4},
        quick_gelu=True,
    ).eval()
    for parameter in theirs.parameters():  # biases start at zero and would hide a wrong row
        torch.nn.init.normal_(parameter, std=0.2)
    ours = tiny(quick_gelu).eval()
    ours.load_state_dict(translate(theirs.state_dict(), openclip_rules(), expected=shapes(ours.state_dict())))
    images, texts = pictures(6), tokens(6)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ours.image.pixels)
    ends = texts.argmax(dim=1)
    with torch.no_grad():
        features = theirs.encode_image(((images + 1) / 2 - mean) / std)
        states = theirs.ln_final(
            theirs.transformer(
                theirs.token_embedding(texts) + theirs.positional_embedding, attn_mask=theirs.attn_mask
            )
        )
        assert_close(ours.image(images), features, atol=1e-5, rtol=0)
        assert_close(ours.text(texts).pooled, theirs.encode_text(texts), atol=1e-5, rtol=0)
        assert_close(ours.text(texts).states, states, atol=1e-5, rtol=0)
        assert_close(
            ours.text(texts).pooled, states[torch.arange(6), ends] @ theirs.text_projection, atol=1e-5, rtol=0
        )
    assert features.std() > 0.1


def test_a_token_sees_only_what_stands_before_it():
    text = tiny().text
    first = tokens(1).expand(2, -1).clone()
    first[1, 6:] = 5
    states = text(first).states
    assert_close(states[0, :6], states[1, :6])
    assert not torch.allclose(states[0, 6:], states[1, 6:])


def test_the_vector_of_a_text_is_its_first_end_token_whatever_pads_follow():
    text = tiny().text
    zeros, ends = tokens(1), tokens(1)
    end = int((zeros[0] == VOCAB_SIZE - 1).nonzero()[0])
    ends[0] = zeros[0]
    ends[0, end:] = VOCAB_SIZE - 1
    assert_close(text(zeros).pooled, text(ends).pooled)
    assert_close(text.projection(text(zeros).states[:, end]), text(zeros).pooled)


def test_features_have_length_one_and_do_not_depend_on_the_batch():
    net, images, texts = tiny(), pictures(5), tokens(5)
    output = net(images, texts)
    assert_close(output.image_features.norm(dim=1), torch.ones(5))
    assert_close(output.text_features.norm(dim=1), torch.ones(5))
    assert_close(output.image_features[3:4], net.encode_images(images[3:4]), atol=1e-6, rtol=0)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="resize them to 16 x 16"):
        tiny().image(torch.zeros(1, 3, 24, 24))


def test_widths_and_patches_must_divide():
    with pytest.raises(ValueError, match="num_heads=5"):
        TextTransformer(vocab_size=600, context_length=8, width=32, num_layers=1, num_heads=5)
    with pytest.raises(ValueError, match="patch_size=7"):
        VisionTransformer(image_size=16, patch_size=7, width=32, num_layers=1, num_heads=4, embed_dim=8)


def test_the_loss_is_the_cross_entropy_of_the_diagonal():
    images, texts = torch.randn(7, 5), torch.randn(7, 5)
    logits = 3.0 * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    right = torch.arange(7)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    assert_close(contrastive_loss(images, texts, torch.tensor(3.0)), expected)
    assert_close(contrastive_loss(images, texts, torch.tensor(3.0), keys=right * 10), expected)


def test_captions_of_one_picture_are_not_pushed_apart():
    images = torch.eye(3)[[0, 0, 1, 2]]
    texts = torch.eye(3)[[0, 0, 1, 2]]
    keys = torch.tensor([4, 4, 8, 9])
    scale = torch.tensor(100.0)
    # the best there is: the share of each of two right answers is a half
    assert contrastive_loss(images, texts, scale, keys=keys).item() == pytest.approx(
        math.log(2) / 2, abs=1e-4
    )
    logits = (scale * images @ texts.T).requires_grad_()
    same = (keys[:, None] == keys).float()
    F.cross_entropy(logits, same / same.sum(1, keepdim=True)).backward()
    assert logits.grad[0, 1].abs() < 1e-6


def test_the_loss_starts_near_log_of_the_batch():
    torch.manual_seed(3)
    net = tiny()
    output = net(pictures(32), tokens(32))
    assert output.scale.item() == pytest.approx(1 / 0.07)
    loss = contrastive_loss(output.image_features, output.text_features, torch.tensor(1.0))
    assert loss.item() == pytest.approx(math.log(32), abs=0.1)


def test_the_temperature_is_held_at_one_hundred():
    net = tiny()
    net.logit_scale.data.fill_(7.0)
    net.clamp_logit_scale()
    scale = net(pictures(2), tokens(2)).scale
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert net.logit_scale.grad > 0  # at the limit it can still come down


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("pad_id", [0, VOCAB_SIZE - 1])
def test_a_batch_can_be_learned_by_heart(pad_id):
    torch.manual_seed(4)
    net, images, texts = tiny(quick_gelu), pictures(8), tokens(8, pad_id)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = contrastive_loss(*net(images, texts))
        loss.backward()
        optimizer.step()
    assert loss < 0.05
