"""Facts about packed weights: the same products to rounding, and nothing left behind."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm.generators.token_loop import CHUNK, Choice, generate_codes
from ldm.models.autoregressive import DalleTransformer
from ldm.models.packed import packed

PACKS = torch.backends.cpu.get_cpu_capability().startswith("AVX")  # elsewhere packing does nothing


def count(net):
    """Layers of a network that are packed."""
    return sum("forward" in vars(module) for module in net.modules())


@pytest.fixture
def net():
    sizes = {"num_codes": 24, "grid": 3, "width": 48, "depth": 2, "num_heads": 2}
    net = DalleTransformer(vocab_size=11, text_length=5, **sizes).eval()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net


@pytest.mark.parametrize("rows", [1, 2, CHUNK, 2 * CHUNK, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_products_are_those_of_the_weights(rows, bias):
    layer, x = nn.Linear(70, 45, bias=bias), torch.randn(rows, 3, 70)
    # as long sums in float64, to a few roundings of float32
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.no_grad(), packed(layer):
        assert count(layer) == PACKS
        assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)
    layer.weight.data = layer.weight.data.t().contiguous().t()  # stored column by column
    with torch.no_grad(), packed(layer):
        assert_close(layer(x).double(), exact, rtol=1e-5, atol=1e-5)


def test_cached_logits_and_codes_are_those_of_the_weights_as_they_are_stored(net):
    texts, codes = torch.randint(10, (CHUNK, 5)), torch.randint(24, (CHUNK, 9))
    with torch.no_grad():
        plain = net.logits(texts, codes)
        with packed(net):
            assert count(net) == (4 * 2 + 2) * PACKS  # four layers of each of two blocks, and two heads
            grown = net.continuation(texts)
            found = [grown(None), *(grown(codes[:, place : place + 1]) for place in range(8))]
    assert_close(torch.stack(found, dim=1), plain, rtol=1e-5, atol=1e-5)
    made = generate_codes(net, texts, range(CHUNK), Choice(top_k=1))
    assert torch.equal(net.logits(texts, made).argmax(dim=-1), made)


def test_weights_that_change_between_two_loops_count(net):
    texts = torch.randint(10, (2, 5))
    net.head_codes.weight.data[7] = 100 * net.head_codes.weight.data[7].sign()
    first = generate_codes(net, texts, [1, 2], Choice(top_k=1))
    net.head_codes.weight.data.neg_()
    assert not torch.equal(generate_codes(net, texts, [1, 2], Choice(top_k=1)), first)


def test_nothing_is_left_behind_even_by_a_loop_that_fails(net):
    def stop(codes, step):
        assert count(net) == 10 * PACKS
        raise KeyboardInterrupt

    names, texts = set(net.state_dict()), torch.randint(10, (1, 5))
    with pytest.raises(KeyboardInterrupt):
        generate_codes(net, texts, [0], Choice(), watch=stop)
    assert count(net) == 0
    assert set(net.state_dict()) == names
    before = net.logits(texts, torch.zeros(1, 9, dtype=torch.int64))
    with torch.no_grad(), packed(net), packed(net):  # the inner one finds nothing to do, and undoes nothing
        pass
    assert torch.equal(net.logits(texts, torch.zeros(1, 9, dtype=torch.int64)), before)


def test_training_autocast_and_other_dtypes_are_left_alone(net):
    with packed(net):
        assert count(net) == 0  # with gradients
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16), packed(net):
            assert count(net) == 0
        for other in (nn.Linear(4, 4).double(), nn.Linear(4, 4, device="meta")):
            with packed(other):
                assert count(other) == 0
