"""Facts about the causal trunk: what each place sees, the cache, and the numerics of CogView."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2Model

from ldm import UserError
from ldm.exchange.keymap import rename, shapes, translate, transpose
from ldm.models.sequence import (
    TokenNorm,
    Trunk,
    column_mask,
    dalle_masks,
    relaxed_attention,
    row_mask,
    window_mask,
)

TEXT, GRID = 3, 4
LENGTH = TEXT + GRID**2


def shaken(net):
    """A network none of whose values is at its first one."""
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def trunk(**options):
    return shaken(Trunk(**({"width": 16, "depth": 3, "num_heads": 2} | options)))


KINDS = {
    "full": {},
    "masked": {"masks": partial(dalle_masks, text=TEXT, grid=GRID, kernel=3), "depth": 4},
    "CogView's": {"sandwich": True, "pb_relax": 32.0},
    "with a context": {"context_dim": 8},
    "recomputed": {"checkpointing": True},
}


def place(number):
    """Row and column of a code."""
    return divmod(number - TEXT, GRID)


def test_the_masks_are_rows_columns_and_windows_of_the_past():
    """Each entry by itself, as the loops of ruDALL-E's image_attention.py set it."""
    row, column, window = row_mask(TEXT, GRID), column_mask(TEXT, GRID), window_mask(TEXT, GRID, 3)
    for i in range(LENGTH):
        for j in range(LENGTH):
            past, text = j <= i, j < TEXT
            (y, x), (y2, x2) = place(i), place(j)
            near = (y - y2) % GRID in (0, 1, GRID - 1) and (x - x2) % GRID in (0, 1, GRID - 1)
            assert row[i, j] == (past and (text or i - j <= GRID))
            assert column[i, j] == (past and (text or x == x2))
            assert window[i, j] == (past and (text or near))


def test_a_row_and_a_column_layer_together_reach_the_whole_past():
    row, column = row_mask(TEXT, GRID).int(), column_mask(TEXT, GRID).int()
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    assert torch.equal(row @ column > 0, causal)
    assert torch.equal(column @ row > 0, causal)


def test_the_layers_have_dalles_masks():
    row, column, window = row_mask(TEXT, GRID), column_mask(TEXT, GRID), window_mask(TEXT, GRID, 11)
    expected = [row, column, row, row, row, column, row, window]
    found = dalle_masks(8, text=TEXT, grid=GRID)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_states_from_the_cache_are_those_of_the_whole_sequence(options):
    net, x = trunk(**options), torch.randn(2, LENGTH, 16)
    context = torch.randn(2, 5, 8) if "context_dim" in options else None
    whole, cache = net(x, context=context), net.cache(2, LENGTH)
    pairs = None if context is None else net.project_context(context)
    parts = [net(x[:, :TEXT], cache=cache, context=pairs)]
    parts += [net(x[:, i : i + 1], cache=cache, context=pairs) for i in range(TEXT, LENGTH)]
    assert cache.length == LENGTH
    # other sizes of products, which sum in other orders; values of about 1
    assert_close(torch.cat(parts, dim=1), whole, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)
def test_no_state_depends_on_later_places(options):
    net, x = trunk(**options), torch.randn(2, LENGTH, 16)
    context = torch.randn(2, 5, 8) if "context_dim" in options else None
    changed = x.clone()
    changed[:, 7:] += 1
    before, after = net(x, context=context), net(changed, context=context)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


@pytest.mark.parametrize("relax", [None, 32.0])
def test_pads_inside_a_sequence_are_as_if_they_were_not_there(relax):
    net, x = trunk(pb_relax=relax), torch.randn(2, 9, 16)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, 2:5] = False
    kept = x[:1, valid[0]]
    assert_close(net(x, valid=valid)[:1, valid[0]], net(kept), rtol=1e-5, atol=5e-6)
    cache = net.cache(2, 9, valid=valid)
    parts = [net(x[:, :4], cache=cache), net(x[:, 4:7], cache=cache), net(x[:, 7:], cache=cache)]
    assert_close(torch.cat(parts, dim=1), net(x, valid=valid), rtol=1e-5, atol=5e-6)


def test_its_states_are_gpt2s():
    config = GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=20, vocab_size=10)
    theirs = shaken(GPT2Model(config))
    ours = Trunk(
        width=32, depth=3, num_heads=4, activation=partial(nn.functional.gelu, approximate="tanh")
    ).eval()
    pairs = {"attn.c_attn": "attention.qkv", "attn.c_proj": "attention.out"}
    pairs |= {"mlp.c_fc": "mlp.wide", "mlp.c_proj": "mlp.narrow"}
    rules = [transpose(f"h.{{}}.{a}.weight", f"layers.{{}}.{b}.weight") for a, b in pairs.items()]
    pairs |= {"ln_1": "norm1", "ln_2": "norm2"}
    rules += [rename(f"h.{{}}.{a}.bias", f"layers.{{}}.{b}.bias") for a, b in pairs.items()]
    rules += [rename(f"h.{{}}.ln_{n}.weight", f"layers.{{}}.norm{n}.weight") for n in (1, 2)]
    rules += [rename("ln_f.*", "norm.*")]
    state = translate(theirs.state_dict(), rules, expected=shapes(ours.state_dict()), drop=["wte.*", "wpe.*"])
    ours.load_state_dict(state)
    x = torch.randn(2, 20, 32)
    places = theirs.wpe(torch.arange(20))
    found = theirs(inputs_embeds=x).last_hidden_state
    assert_close(ours(x + places), found, rtol=1e-5, atol=5e-6)


def test_pb_relax_is_plain_attention_in_float32():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    plain = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    allowed = torch.ones(9, 9, dtype=torch.bool).tril()
    assert_close(relaxed_attention(q, k, v, allowed, alpha=32.0), plain, rtol=0, atol=1e-6)


def test_pb_relax_stays_finite_in_float16_where_logits_overflow():
    q, k = (300 * torch.randn(2, 1, 2, 9, 64)).half().unbind(0)
    v = torch.randn(1, 2, 9, 64).half()
    scale = q.shape[-1] ** 0.5
    plain = ((q @ k.mT) / scale).softmax(-1) @ v
    divided_first = ((q / scale) @ k.mT).softmax(-1) @ v
    assert plain.isnan().any()
    assert divided_first.isnan().any()
    found = relaxed_attention(q, k, v, None, alpha=32.0)
    exact = ((q.double() @ k.double().mT) / scale).softmax(-1) @ v.double()
    # logits of tens of thousands have one winner in most rows, 11 bits or more
    assert found.isfinite().all()
    assert ((found - exact).abs().amax(-1) < 0.01).float().mean() > 0.8


def test_a_sandwich_with_closing_norms_at_zero_is_the_identity():
    net = trunk(sandwich=True)
    for layer in net.layers:
        for norm in (layer.close1, layer.close2):
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)
    x = torch.randn(2, 6, 16)
    assert torch.equal(net(x), net.norm(x))


def test_a_norm_of_divided_inputs_is_the_norm_and_each_tokens_own():
    norm, x = TokenNorm(16), torch.randn(3, 5, 16)
    # the epsilon of 1e-5 counts less beside the larger variance
    assert_close(norm(x), nn.LayerNorm(16)(x), rtol=2e-5, atol=1e-5)
    beside = torch.cat([x, 1e4 * torch.randn(2, 5, 16)])
    assert torch.equal(norm(beside)[:3], norm(x))
    assert torch.equal(norm(torch.zeros(1, 1, 16)), torch.zeros(1, 1, 16))
    large = (6e4 * torch.ones(1, 1, 16)).half()
    large[..., 0] = 0
    assert norm.half()(large).isfinite().all()


def test_dropout_is_what_is_passed_in():
    net, x, seen = trunk(), torch.randn(1, 4, 16), []
    assert torch.equal(net(x, drop=lambda values, name: seen.append(name) or values), net(x))
    assert seen == ["embeddings", *(f"{n}/{branch}" for n in range(3) for branch in ("attention", "mlp"))]
    assert torch.equal(net(x, drop=lambda values, _: 0 * values), net.norm(torch.zeros_like(x)))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(UserError, match="width=16 is not a multiple of num_heads=3"):
        Trunk(width=16, depth=1, num_heads=3)
