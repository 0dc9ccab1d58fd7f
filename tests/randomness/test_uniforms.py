"""Facts about uniform numbers and the Gumbel noise that is made of them."""

import math

import pytest
import torch
from scipy import stats

from ldm.randomness import philox
from ldm.randomness.uniforms import BITS, SeededUniforms, gumbel, of_keys, uniforms

CPU = torch.device("cpu")


@pytest.mark.parametrize("position", [0, 2**32 + 1])
def test_a_number_is_the_middle_of_the_part_that_its_word_names(position):
    key, found = 0xFEDCBA9876543210, []
    for block in range(2):
        counter = [block, 0, position & philox.WORD, position >> 32]
        words = philox.philox(torch.tensor(counter), torch.tensor([key & philox.WORD, key >> 32])).tolist()
        found.append([((word >> 32 - BITS) + 0.5) / 2**BITS for word in (words[i] for i in (0, 2, 1, 3))])
    expected = torch.tensor(found).T.flatten()  # float32 holds these exactly
    assert torch.equal(of_keys([key], torch.tensor([position]), (8,), device=CPU)[0], expected)


def test_they_are_uniform_and_neither_0_nor_1():
    found = uniforms((1000, 50), seed=3, positions=torch.arange(4), stream="test")
    assert 0 < found.min() < found.max() < 1
    assert stats.kstest(found.flatten().double(), "uniform").pvalue > 1e-3
    assert math.isfinite(gumbel(found).abs().max())


def test_a_picture_has_the_same_numbers_beside_any_others():
    together, alone = SeededUniforms([5, 7, 5], device=CPU), SeededUniforms([7], device=CPU)
    for shape in ((3, 40), (2,), (20_000,)):
        row = together(*shape)
        assert torch.equal(row[1:2], alone(*shape))
        assert torch.equal(row[0], row[2])


def test_the_largest_of_logits_and_gumbel_noise_is_a_sample_of_the_softmax():
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, -torch.inf])
    noise = gumbel(uniforms((20_000, 5), seed=0, positions=torch.tensor([0]), stream="test"))[0]
    counts = (logits + noise).argmax(dim=1).bincount(minlength=5)
    assert counts[4] == 0
    expected = 20_000 * logits.softmax(0)[:4].double()
    assert stats.chisquare(counts[:4].double(), expected * counts.sum() / expected.sum()).pvalue > 1e-3
