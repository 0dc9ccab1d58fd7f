"""Facts of mask-and-replace: matrices, posteriors and bounds against Bayes, closed forms and diffusers.

Matrices are written out in float64 for a few codes, column by column: Q[i, j] = q(x_t = i | x_s = j).
"""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import VQDiffusionScheduler

from ldm import UserError
from ldm.diffusion.discrete import (
    Ancestral,
    MaskAndReplace,
    Purity,
    auxiliary,
    guided,
    mask_only,
    paper,
    released,
    truncated,
)

SCHEDULES = [paper, released]


def matrix(process, s, t):
    """Q of the stretch from s to t, (k + 1, k + 1)."""
    stretch = process.stretch(torch.tensor([s]), torch.tensor([t]))
    keep, replace, mask = (each.item() for each in stretch)
    k = process.num_codes
    q = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    q[:k, :k] = keep * torch.eye(k, dtype=torch.float64) + replace
    q[k, :k], q[k, k] = mask, 1.0
    return q


def by_bayes(process, p, x, t, s):
    """The posterior of one place: sum over x_0 of q(x_s | x_t, x_0) p(x_0), (k + 1,)."""
    first, second, whole = matrix(process, 0, s), matrix(process, s, t), matrix(process, 0, t)
    each = second[x][:, None] * first[:, :-1] / whole[x, :-1]  # k + 1 by x_0
    return each @ p


def gumbels(seed):
    generator = torch.Generator().manual_seed(seed)

    def gumbel(*shape):
        return -(-torch.rand(rows, *shape, generator=generator).log()).log()

    rows = 2
    return gumbel


def times(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_closed_form_is_the_product_of_the_steps_and_columns_sum_to_one(schedule):
    process = schedule(num_codes=5, num_steps=10)
    product = torch.eye(6, dtype=torch.float64)
    for t in range(1, 11):
        product = matrix(process, t - 1, t) @ product
        # a few roundings of float64
        torch.testing.assert_close(matrix(process, 0, t), product, rtol=0, atol=1e-15)
        torch.testing.assert_close(product.sum(dim=0), torch.ones(6).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(matrix(process, 3, 8) @ matrix(process, 0, 3), matrix(process, 0, 8))


@pytest.mark.parametrize(("schedule", "masked", "replaced"), [(paper, 0.9, 0.1), (released, 0.99999, 1e-6)])
def test_what_is_masked_and_replaced_at_the_end(schedule, masked, replaced):
    process = schedule(num_codes=512)
    _, replace, mask = (each.item() for each in process.stretch(times(0), times(100)))
    assert mask == pytest.approx(masked, abs=1e-12)
    assert 512 * replace == pytest.approx(replaced, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1, 0), (2, 1), (7, 6), (10, 9), (9, 2), (10, 0)])
def test_the_posterior_is_that_of_bayes(schedule, t, s):
    process = schedule(num_codes=5, num_steps=10)
    log_p = torch.randn(6, dtype=torch.float64).expand(1, 6, 6)[..., :5].log_softmax(dim=-1)
    x = torch.arange(6)[None]
    found = process.posterior(log_p, x, times(t), times(s)).exp()
    for place in range(6):
        expected = by_bayes(process, log_p[0, place].exp(), x[0, place], t, s)
        torch.testing.assert_close(found[0, place], expected, rtol=1e-9, atol=1e-12)
    single = process.posterior(log_p.float(), x, times(t), times(s)).exp()
    # logarithms down to -14 have a rounding of 1e-6 in float32
    torch.testing.assert_close(single.double(), found, rtol=0, atol=2e-6)


def test_the_posterior_is_that_of_diffusers():
    theirs = VQDiffusionScheduler(num_vec_classes=6, num_train_timesteps=10)
    process = released(num_codes=5, num_steps=10)
    log_p = torch.randn(3, 6, 5).log_softmax(dim=-1)
    x = torch.stack([torch.arange(6)] * 3)
    for t in range(2, 11):  # theirs counts from 0 and leaves the last step out
        found = process.posterior(log_p.double(), x, times(t, t, t), times(t - 1, t - 1, t - 1)).exp()
        expected = theirs.q_posterior(log_p.transpose(1, 2), x, torch.tensor(t - 1)).exp().transpose(1, 2)
        torch.testing.assert_close(found, expected.double(), rtol=0, atol=2e-6)  # float32, as above


@pytest.mark.parametrize("schedule", [*SCHEDULES, mask_only])
def test_the_bound_of_a_perfect_network_is_zero_and_the_last_step_is_its_likelihood(schedule):
    process = schedule(num_codes=4, num_steps=10)
    x0 = torch.tensor([[0, 1, 2, 3]] * 9)
    t = torch.arange(2, 11)
    x = process.noised(x0, t, torch.rand(9, 2, 4))
    sure = torch.full((9, 4, 4), -70.0).scatter(-1, x0[..., None], 0.0)
    assert process.divergence(sure, x0, x, t).abs().max() < 1e-5
    log_p = torch.randn(9, 4, 4).log_softmax(dim=-1)
    first, expected = torch.ones_like(t), auxiliary(log_p, x0)
    x = process.noised(x0, first, torch.rand(9, 2, 4))
    if schedule is mask_only:
        expected = expected * (x == 4)  # an open place is certain, whatever the network says
    torch.testing.assert_close(process.divergence(log_p, x0, x, first), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_and_its_gradient_are_finite_even_of_a_network_that_is_sure_and_wrong(
    schedule,
):
    process = schedule(num_codes=4, num_steps=10)
    x0, t = torch.tensor([[0, 1, 2, 3]] * 10), torch.arange(1, 11)
    for dtype in (torch.float32, torch.bfloat16):
        logits = torch.zeros(10, 4, 4, dtype=dtype)
        logits[..., 0] = 60.0
        logits.requires_grad_()
        x = process.noised(x0, t, torch.rand(10, 2, 4))
        loss = process.divergence(logits.log_softmax(dim=-1), x0, x, t)
        loss.sum().backward()
        assert loss.isfinite().all()
        assert logits.grad.isfinite().all()


def test_noised_codes_have_the_probabilities_of_the_matrix():
    process = paper(num_codes=3, num_steps=10)
    t = torch.full((50,), 6)
    x0 = torch.ones(50, 2000, dtype=torch.int64)
    x = process.noised(x0, t, torch.rand(50, 2, 2000, generator=torch.Generator().manual_seed(0)))
    shares = x.flatten().bincount(minlength=4) / x.numel()
    # four deviations of a share of 100,000
    torch.testing.assert_close(shares.double(), matrix(process, 0, 6)[:, 1], rtol=0, atol=4 * 0.5 / 316)


@pytest.mark.parametrize("schedule", [*SCHEDULES, mask_only])
@pytest.mark.parametrize("sampler", [Ancestral(steps=10), Ancestral(steps=3), Purity(steps=4)])
def test_with_a_perfect_network_the_sampler_returns_the_picture(schedule, sampler):
    process = schedule(num_codes=7, num_steps=10)
    x0 = torch.randint(7, (2, 16), generator=torch.Generator().manual_seed(1))
    sure = torch.full((2, 16, 7), -70.0).scatter(-1, x0[..., None], 0.0)
    assert torch.equal(sampler(lambda x, t: sure, process, places=16, gumbel=gumbels(0)), x0)


def test_without_replacement_a_mask_opens_with_probability_one_over_t():
    process = mask_only(num_codes=3, num_steps=10)
    log_p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(1, 4, 3)
    x = torch.tensor([[0, 1, 2, 3]])
    for t in range(1, 10):  # at 10 no place is open
        found = process.posterior(log_p, x, times(t), times(t - 1)).exp()[0]
        assert found[3, 3].item() == pytest.approx(1 - 1 / t, abs=1e-14)
        torch.testing.assert_close(found[3, :3], log_p[0, 0].exp() / t, rtol=0, atol=1e-14)
        torch.testing.assert_close(found[:3, :3], torch.eye(3).double())  # an open place stays


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_stride_is_its_single_steps_in_law(schedule):
    """The chain of posteriors of a known x_0, step by step and in one stride; all states of K = 3."""
    process, clean = schedule(num_codes=3, num_steps=12), torch.tensor(1)
    sure = torch.full((1, 4, 3), -1e4, dtype=torch.float64)
    sure[..., clean] = 0

    def law(t, s):
        return process.posterior(sure, torch.arange(4)[None], times(t), times(s)).exp()[0]  # from x_t to x_s

    steps = law(9, 8) @ law(8, 7) @ law(7, 6) @ law(6, 5)
    torch.testing.assert_close(law(9, 5), steps, rtol=1e-9, atol=1e-12)


def test_scale_one_and_mass_one_change_nothing():
    log_p, other = torch.randn(2, 2, 3, 5).log_softmax(dim=-1)
    assert truncated(log_p, 1.0) is log_p
    torch.testing.assert_close(guided(log_p, other, 1.0), log_p)
    twice = guided(log_p, other, 3.0)
    torch.testing.assert_close(twice, (3 * log_p - 2 * other).log_softmax(dim=-1))


def test_truncation_keeps_the_fewest_codes_that_reach_the_mass():
    log_p = torch.tensor([[[0.1, 0.5, 0.3, 0.1]]]).log()
    expected = {0.4: [1], 0.5: [1], 0.6: [1, 2], 0.85: [0, 1, 2]}
    for mass, kept in expected.items():
        cut = truncated(log_p, mass - 1e-6)
        assert (cut[0, 0] > -70).nonzero().flatten().tolist() == kept
        assert torch.equal(cut[0, 0, kept], log_p[0, 0, kept])


def test_purity_opens_what_the_schedule_expects_and_keeps_what_is_open():
    process, seen = released(num_codes=4, num_steps=10), []
    log_p = torch.randn(2, 20, 4, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)

    def predict(x, t):
        seen.append(x)
        return log_p

    seen.append(Purity(steps=5)(predict, process, places=20, gumbel=gumbels(0)))
    expected = [round(20 * process.masked[t].item()) for t in (10, 8, 6, 4, 2, 0)]
    assert [(x == 4).sum(dim=1).tolist() for x in seen] == [[left] * 2 for left in expected]
    for before, after in pairwise(seen):
        assert torch.equal(after[before < 4], before[before < 4])


def test_the_bound_is_an_upper_bound_that_a_network_of_the_true_law_reaches_where_places_are_independent():
    """Of codes with known independent probabilities the negative log-likelihood is the entropy."""
    process = mask_only(num_codes=3, num_steps=10)
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    total = torch.zeros(3, dtype=torch.float64)
    for t in range(1, 11):
        for x0 in range(3):
            reach = matrix(process, 0, t)[:, x0]
            x, start = torch.arange(4)[None], torch.full((1, 4), x0)
            # given x_t the network knows: an open place is its own code
            sure = torch.full((1, 4, 3), -1e4, dtype=torch.float64)
            sure[0, range(3), range(3)] = 0.0
            sure[0, 3] = p.log()
            total[x0] += (reach * process.divergence(sure, start, x, times(t))[0]).sum()
    assert (p * total).sum().item() + process.end_divergence == pytest.approx(-(p * p.log()).sum().item())


@pytest.mark.parametrize("schedule", [released, paper, mask_only])
def test_the_end_of_the_bound_is_the_divergence_of_the_start(schedule):
    process = schedule(num_codes=6, num_steps=10)
    q, p = matrix(process, 0, 10)[:, 2], process.start().double().exp()
    expected = sum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)
    assert process.end_divergence == pytest.approx(expected, abs=1e-7)  # `start` is float32
    assert p.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: paper(num_codes=0), "num_codes=0"),
        (lambda: released(num_codes=4, num_steps=1), "num_steps=1 must lie between 2 and 10,000"),
        (lambda: paper(num_codes=4, num_steps=10**9), "num_steps=1000000000 must lie between"),
        (lambda: Ancestral(steps=0), "steps=0 must be"),
        (lambda: Ancestral(truncation=0.0), r"truncation=0.0 must lie in \(0, 1\]"),
        (lambda: Ancestral(truncation=1.1), "truncation=1.1"),
        (lambda: Purity(weight=-1.0), "purity=-1.0 must be"),
        (lambda: Purity(steps=0), "steps=0 must be"),
        (
            lambda: Ancestral(steps=11).times(paper(num_codes=2, num_steps=10)),
            "more than the process has, 10",
        ),
    ],
)
def test_what_is_no_process_or_sampler_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_a_schedule_must_fall_from_certainty():
    with pytest.raises(UserError, match="alpha-bar"):
        MaskAndReplace(
            num_codes=2, kept=torch.tensor([1.0, 0.5, 0.6]).double(), masked=torch.zeros(3).double()
        )
