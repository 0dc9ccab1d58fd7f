"""Facts about the networks and the loop beside transformers' GPT-2 with the same weights."""

import pytest
import torch

from benchmarks.tokens_vs_transformers import TEXT, WORDS, Size, difference, pair
from ldm.generators.token_loop import Choice, generate_codes

pytestmark = pytest.mark.usefixtures("unchecked_shapes")


def test_the_logits_and_the_likeliest_codes_are_gpt2s():
    ours, theirs = pair(Size(width=32, depth=2, num_heads=2, num_codes=24, grid=3, batch=2))
    ours, theirs = ours.eval(), theirs.eval()
    texts, codes = torch.randint(WORDS, (3, TEXT)), torch.randint(24, (3, 9))
    assert difference(ours, theirs, texts, codes) < 1e-5
    options = {"do_sample": False, "max_new_tokens": 9, "min_new_tokens": 9, "use_cache": True}
    with torch.inference_mode():
        whole = theirs.generate(
            texts, attention_mask=torch.ones_like(texts), suppress_tokens=list(range(WORDS)), **options
        )
    assert torch.equal(generate_codes(ours, texts, [0, 1, 2], Choice(top_k=1)), whole[:, TEXT:] - WORDS)
