"""The systems learn eight pictures of one colour each from captions of one word each.

The bounds are about twice what two seeds reached: 0.089 nats per code at step 50 and 0.020 at
step 100 (DALL-E), 0.04 at step 100 (CogView).
"""

import math

import pytest
import torch

from ldm.generators.token_loop import Choice, generate_codes
from ldm.models.autoregressive import CogViewTransformer, DalleTransformer, PrefixTransformer
from ldm.stages.autoregressive import apart, mean_of_text, together

WORDS, COLOURS, PLACES = 10, 8, 16
SIZES = {"num_codes": 16, "grid": 4, "width": 32, "depth": 2, "num_heads": 2}
TOKENS = {"vocab_size": WORDS, "text_length": 3} | SIZES
TEXTS = torch.tensor([[WORDS - 2, word, WORDS - 1] for word in range(COLOURS)])
CODES = torch.arange(3, 3 + COLOURS)[:, None].repeat(1, PLACES)

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def trained(net, loss, *, steps):
    """The network after some steps on all eight at once."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(steps):
        loss(net).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@torch.no_grad()
def image_nats(net, condition):
    return net.nats(condition, CODES).image.mean().item()


def test_dalle_learns_them():
    def loss(net):
        return apart(net.nats(TEXTS, CODES), text=0.125)

    net = trained(DalleTransformer(**TOKENS, kernel=3), loss, steps=50)
    assert image_nats(net, TEXTS) < 0.18
    assert image_nats(trained(net, loss, steps=50), TEXTS) < 0.04
    made = generate_codes(net, TEXTS, range(COLOURS), Choice())
    assert (made == CODES).double().mean() > 0.9


def test_without_captions_the_first_code_costs_the_choice_among_eight():
    same = TEXTS[:1].repeat(COLOURS, 1)
    net = trained(DalleTransformer(**TOKENS, kernel=3), lambda net: net.nats(same, CODES).image, steps=100)
    floor = math.log(COLOURS) / PLACES
    assert floor <= image_nats(net, same) < 2 * floor


def test_cogview_learns_them_and_ranks_the_true_caption_first():
    def loss(net):
        whole = together(net.nats(TEXTS, CODES), text_weight=1.0)
        return whole + mean_of_text(net.caption_nats(TEXTS, CODES))

    net = trained(CogViewTransformer(**TOKENS), loss, steps=100)
    assert image_nats(net, TEXTS) < 0.08
    made = generate_codes(net, TEXTS, range(COLOURS), Choice())
    assert (made == CODES).double().mean() > 0.9
    for picture in range(COLOURS):
        found = net.caption_nats(TEXTS, CODES[picture : picture + 1].expand(COLOURS, -1))
        assert (found.text * found.counted).sum(1).argmin() == picture


def test_clip_gen_learns_them_where_texts_have_the_features_of_their_pictures():
    vectors = torch.randn(COLOURS, 12)
    net = PrefixTransformer(prefix_dim=12, **SIZES)
    net = trained(net, lambda net: net.nats(vectors, CODES).image, steps=100)
    assert image_nats(net, vectors) < 0.02
    assert torch.equal(generate_codes(net, vectors, range(COLOURS), Choice(top_p=0.9)), CODES)
