"""Attention against torch's own; in half precision on a CPU it is computed a few heads at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from ldm.models import attention
from ldm.models.attention import attend


def inputs(*, heads: int = 3, queries: int = 9, keys: int = 9) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = (queries, keys, keys)
    return [torch.randn(2, heads, n, 8, generator=generator).bfloat16().requires_grad_() for n in rows]


BANDS = torch.stack([torch.ones(9, 9).tril(k) - torch.ones(9, 9).tril(-4) for k in (0, 2)]).bool()
CHOICES = {
    "all": {},
    "causal": {"causal": True},
    "a mask": {"allowed": BANDS[0]},
    "a mask of each row": {"allowed": BANDS[:, None]},
}


@pytest.mark.parametrize("options", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("cached", [9 * 9, 2 * 9 * 9, 2**21], ids=["head by head", "two heads", "all heads"])
def test_attention_in_half_precision_is_that_of_single_precision_rounded(monkeypatch, options, cached):
    monkeypatch.setattr(attention, "CACHED_LOGITS", cached)
    halves = inputs()
    wholes = [x.detach().float().requires_grad_() for x in halves]
    ours, exact = attend(*halves, **options), attend(*wholes, **options)  # the second by torch's own
    assert ours.dtype == torch.bfloat16
    assert_close(ours.float(), exact, atol=2e-2, rtol=2e-2)
    for half, whole in zip(
        torch.autograd.grad(ours.float().square().sum(), halves),
        torch.autograd.grad(exact.square().sum(), wholes),
        strict=True,
    ):
        assert (half.float() - whole).norm() < 0.02 * whole.norm()  # five steps of bfloat16


def test_the_number_of_heads_at_a_time_changes_no_bit(monkeypatch):
    whole = attend(*inputs(queries=12, keys=7))
    monkeypatch.setattr(attention, "CACHED_LOGITS", 12 * 7)
    assert torch.equal(attend(*inputs(queries=12, keys=7)), whole)


def test_a_head_too_large_for_the_caches_is_left_to_the_fused_kernel(monkeypatch):
    monkeypatch.setattr(attention, "CACHED_LOGITS", 9 * 9 - 1)
    assert torch.equal(attend(*inputs()), F.scaled_dot_product_attention(*inputs()))
