"""Facts about quantizers: VQ-VAE-2's 1, 2 and 7, CLIP-GEN's weights, DALL-E's divergence, and peers."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss, normalize
from torch.testing import assert_close
from vector_quantize_pytorch import FSQ, VectorQuantize

from ldm import UserError
from ldm.models.quantizers import (
    Draw,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    Statistics,
    VectorQuantizer,
    cosine,
    divergence_to_uniform,
)


def step(quantizer: VectorQuantizer, features: torch.Tensor) -> Statistics:
    quantized = quantizer(features)
    found = quantizer.statistics(
        quantized, torch.arange(features[:, 0].numel()).float().view_as(features[:, 0])
    )
    quantizer.update(found)
    return found


@pytest.fixture
def features():
    return torch.randn(3, 4, 5, 5)


def test_one_step_of_the_averages_is_the_closed_form(features):
    quantizer = VectorQuantizer(num_codes=6, dim=4, decay=0.9, restart_below=0.0)
    before = quantizer.codebook.clone()
    rows = features.movedim(1, -1).reshape(-1, 4)
    codes = torch.cdist(rows, before).argmin(dim=1)
    assert torch.equal(quantizer(features).codes.flatten(), codes)
    step(quantizer, features)
    for code in range(6):
        own = rows[codes == code]
        assert_close(quantizer.counts[code], torch.tensor(0.1 * len(own)))
        # smoothing moves a code of one vector by 6e-5 of itself: 1e-5 / 0.1, less what the total grows
        mean = own.mean(dim=0) if len(own) else before[code]
        assert_close(quantizer.codebook[code], mean, rtol=2e-4, atol=1e-5)


def test_a_code_without_a_vector_loses_its_count_alone(features):
    quantizer = VectorQuantizer(num_codes=6, dim=4, decay=0.9, restart_below=0.0)
    step(quantizer, features)
    counts, codebook = quantizer.counts.clone(), quantizer.codebook.clone()
    nothing = torch.zeros(0, 4)
    quantizer.update(Statistics(torch.zeros(6), torch.zeros(6, 4), nothing, torch.zeros(0)))
    assert_close(quantizer.counts, 0.9 * counts)
    assert_close(quantizer.codebook, codebook, rtol=1e-4, atol=1e-6)  # by the smoothing


def test_the_step_is_that_of_vector_quantize_pytorch(features):
    ours = VectorQuantizer(num_codes=8, dim=4, decay=0.9, restart_below=0.0)
    theirs = VectorQuantize(
        dim=4,
        codebook_size=8,
        decay=0.9,
        threshold_ema_dead_code=0,
        accept_image_fmap=True,
        commitment_weight=0.25,
    )
    theirs._codebook.embed.data.copy_(ours.codebook)
    theirs._codebook.embed_avg.data.copy_(ours.codebook)
    theirs._codebook.cluster_size.data.fill_(1.0)
    ours.counts.fill_(1.0)
    ours.sums.copy_(ours.codebook)
    quantized = ours(features)
    values, codes, loss = theirs.train()(features)
    assert torch.equal(quantized.codes, codes)
    assert_close(quantized.values, values, rtol=0, atol=1e-6)
    assert_close(quantized.loss, loss.squeeze())
    step(ours, features)
    assert_close(ours.codebook, theirs._codebook.embed[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalised", [False, True])
def test_the_gradient_passes_straight_through_and_the_value_is_the_code(features, normalised):
    quantizer = VectorQuantizer(num_codes=6, dim=4, encoder_weight=0.0, normalised=normalised)
    features.requires_grad_()
    quantized = quantizer(features)
    assert torch.equal(quantized.values, quantizer.lookup(quantized.codes))
    weights = torch.randn_like(features)
    (found,) = torch.autograd.grad((quantized.values * weights).sum(), features)
    seen = normalize(features, dim=1) if normalised else features
    (expected,) = torch.autograd.grad((seen * weights).sum(), features)
    assert torch.equal(found, expected)


def test_the_weights_are_those_of_encoder_and_codebook(features):
    """CLIP-GEN's 1 and 0.2; the legacy order of taming's VQGAN gives the encoder 4 times as much."""
    gradients = {}
    for name, weights in {"clip-gen": (1.0, 0.2), "legacy": (1.0, 0.25), "corrected": (0.25, 1.0)}.items():
        torch.manual_seed(1)
        encoder, codebook = weights
        quantizer = VectorQuantizer(
            num_codes=6, dim=4, learned=True, encoder_weight=encoder, codebook_weight=codebook
        )
        inputs = features.clone().requires_grad_()
        quantized = quantizer(inputs)
        code = quantizer.lookup(quantized.codes)
        assert_close(quantized.loss, (encoder + codebook) * mse_loss(code, inputs))
        gradients[name] = torch.autograd.grad(quantized.loss, (inputs, quantizer.codebook))
    assert_close(gradients["legacy"][0], 4 * gradients["corrected"][0])
    assert_close(gradients["legacy"][1], gradients["corrected"][1] / 4)
    assert_close(gradients["clip-gen"][1], 0.2 * gradients["corrected"][1])


def test_codes_that_nothing_uses_are_replaced_by_vectors_of_the_batch(features):
    quantizer = VectorQuantizer(num_codes=64, dim=4)
    quantizer.codebook[1:] += 100
    step(quantizer, features)
    rows = features.movedim(1, -1).reshape(-1, 4)
    # a code of one vector has count 0.01, and its smoothing by 1e-5 moves it by a thousandth
    assert torch.cdist(quantizer.codebook[1:], rows).min(dim=1).values.max() < 3e-3
    assert len(quantizer(features).codes.unique()) > 30


def test_autocast_changes_no_count_and_no_code():
    quantizer, features = VectorQuantizer(num_codes=6, dim=4), torch.randn(9, 4, 16, 16)
    expected = quantizer.statistics(quantizer(features), torch.rand(9, 16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer.statistics(quantizer(features), torch.rand(9, 16, 16))
    assert torch.equal(found.counts, expected.counts)
    assert found.counts.max() > 256  # the largest number up to which bfloat16 has every whole one
    assert torch.equal(found.sums, expected.sums)


def learned_colours(restart_below: float) -> tuple[int, float]:
    """Codes in use and decibels of a small network after 200 steps on eight pictures of one colour each."""
    torch.manual_seed(1)
    corners = torch.tensor([[r, g, b] for r in (-0.7, 0.7) for g in (-0.7, 0.7) for b in (-0.7, 0.7)])
    images = corners[:, :, None, None].expand(8, 3, 8, 8).contiguous()
    encoder = nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.ReLU(), nn.Conv2d(32, 8, 1))
    decoder = nn.Sequential(nn.Conv2d(8, 32, 1), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, stride=4))
    quantizer = VectorQuantizer(num_codes=32, dim=8, restart_below=restart_below)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(200):
        quantized = quantizer(encoder(images))
        loss = mse_loss(decoder(quantized.values), images) + quantized.loss
        optimizer.zero_grad()
        loss.backward()
        quantizer.update(quantizer.statistics(quantized, torch.randn(8, 2, 2)))
        optimizer.step()
    quantized = quantizer(encoder(images))
    error = mse_loss(decoder(quantized.values), images)
    return len(quantized.codes.unique()), 10 * math.log10(4 / error)


def test_eight_colours_get_a_code_each_and_without_restarts_they_do_not():
    """VQ-VAE-2 7. Three seeds gave 8 codes and 47 to 49 dB with restarts, 1 to 4 and 9 to 14 dB without."""
    used, quality = learned_colours(0.1)
    assert (used, quality >= 35) == (8, True)
    used, quality = learned_colours(0.0)
    assert used < 8
    assert quality < 25


def test_a_learned_codebook_is_restarted_too(features):
    quantizer = VectorQuantizer(num_codes=8, dim=4, learned=True, codebook_weight=1.0)
    step(quantizer, features)
    assert len(quantizer(features).codes.unique()) > 4
    assert quantizer.codebook.requires_grad


def test_finite_scalars_are_those_of_vector_quantize_pytorch():
    features = 3 * torch.randn(2, 3, 6, 6)
    ours, theirs = FiniteScalarQuantizer(levels=[8, 5, 4]), FSQ(levels=[8, 5, 4])
    values, codes = theirs(features)
    quantized = ours(features)
    assert torch.equal(quantized.codes, codes.long())
    assert_close(quantized.values, values, rtol=0, atol=1e-6)
    assert torch.equal(ours.lookup(quantized.codes), quantized.values)
    everything = torch.arange(160).view(1, 1, 160)
    assert len(ours.lookup(everything)[0, :, 0].T.unique(dim=0)) == 160


@pytest.fixture
def gumbel():
    temperature = partial(cosine, start=1.0, end=1 / 16, steps=100)
    return GumbelQuantizer(
        channels=4, num_codes=6, dim=3, temperature=temperature, divergence_weight=lambda step: 0.5
    )


def test_the_relaxation_approaches_a_choice_as_its_temperature_falls(gumbel, features):
    def noise(like: torch.Tensor) -> torch.Tensor:
        return -(-torch.rand(like.shape, generator=torch.Generator().manual_seed(3)).log()).log()

    logits = gumbel.to_logits(features)
    chosen = gumbel.lookup((logits + noise(logits)).argmax(dim=1))
    gaps = [(gumbel(features, Draw(each, noise)).values - chosen).abs().mean() for each in (0, 75, 100)]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert torch.equal(gumbel(features).values, gumbel.lookup(logits.argmax(dim=1)))


def test_the_divergence_is_0_at_equal_logits_and_ln_k_at_one_code(gumbel, features):
    even, sure = torch.full((1, 6, 2, 2), 3.0), torch.zeros(1, 6, 2, 2)
    sure[:, 2] = 1e4
    assert_close(divergence_to_uniform(even), torch.zeros(1, 2, 2), rtol=0, atol=1e-6)
    assert_close(divergence_to_uniform(sure), torch.full((1, 2, 2), math.log(6)))
    assert_close(gumbel(features).loss, 0.5 * divergence_to_uniform(gumbel.to_logits(features)).mean())


def test_a_schedule_is_half_a_cosine():
    found = [cosine(step, start=1.0, end=0.5, steps=10) for step in (0, 5, 10, 20)]
    assert found == pytest.approx([1.0, 0.75, 0.5, 0.5])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_codes": 0}, "num_codes=0"),
        ({"decay": 1.0}, "decay=1.0"),
        ({"codebook_weight": 1.0}, "learned=False"),
        ({"learned": True}, "needs a weight"),
    ],
)
def test_sizes_that_no_codebook_has_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        VectorQuantizer(**({"num_codes": 4, "dim": 4} | options))
    with pytest.raises(UserError, match="levels"):
        FiniteScalarQuantizer(levels=[1])
