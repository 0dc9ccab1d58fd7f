"""Facts about the sentence encoder: no token attends to a pad, and pads hold the sentence's vector."""

import torch
from torch.testing import assert_close

from ldm.models.text_encoders import SentenceEncoder


def tiny() -> SentenceEncoder:
    net = SentenceEncoder(vocab_size=60, context_length=12, width=16, num_layers=2, num_heads=2)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return net.eval()


def rows(*texts: list[int], length: int) -> torch.Tensor:
    return torch.tensor([[*text, *[0] * (length - len(text))] for text in texts])


def test_a_text_has_the_same_states_whatever_pads_follow_it():
    net, text = tiny(), [1, 7, 8, 9, 2]
    alone = net(rows(text, length=5))
    padded = net(rows(text, [1, 3, 4, 5, 6, 7, 2], length=12))
    assert_close(padded.states[:1, :5], alone.states)
    assert_close(padded.pooled[:1], alone.pooled)


def test_all_tokens_attend_to_one_another():
    net = tiny()
    one, other = net(rows([1, 7, 8, 9, 2], [1, 7, 8, 5, 2], length=6)).states
    assert ((one - other).abs().amax(dim=1) > 1e-3).all()  # the first tokens, too


def test_pads_hold_the_mean_of_the_real_states_which_is_that_of_all_places():
    net = tiny()
    out = net(rows([1, 7, 8, 9, 2], [1, 2], length=12))
    for states, pooled, count in zip(out.states, out.pooled, (5, 2), strict=True):
        assert_close(pooled, states[:count].mean(dim=0))
        assert torch.equal(states[count:], pooled.expand(12 - count, -1))
        assert_close(states.mean(dim=0), pooled)


def test_half_precision_sees_the_same_places():
    net, ids = tiny(), rows([1, 7, 8, 9, 2], [1, 2], length=12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(ids).states
    assert_close(found.float(), net(ids).states, atol=0.1, rtol=0.05)  # bfloat16 has 8 bits
