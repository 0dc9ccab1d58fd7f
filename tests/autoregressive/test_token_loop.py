"""Facts about choosing codes one after the other: whatever the batch, and what each option keeps."""

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from ldm import NotFinite, UserError
from ldm.generators.token_loop import CHUNK, Choice, generate_codes, likeliest
from ldm.models.autoregressive import CogViewTransformer, DalleTransformer, PrefixTransformer

SIZES = {"num_codes": 12, "grid": 3, "width": 16, "depth": 2, "num_heads": 2}


def shaken(net):
    """A network whose logits differ by some units."""
    for parameter in net.parameters():
        parameter.data += 0.4 * torch.randn_like(parameter)
    return net.eval()


@pytest.fixture
def net():
    return shaken(PrefixTransformer(prefix_dim=6, **SIZES))


@pytest.fixture
def vectors():
    return torch.randn(CHUNK + 3, 6)


CHOICES = {
    "plain": Choice(),
    "cut": Choice(temperature=0.7, top_k=5, top_p=0.8),
    "guided": Choice(scale=2.0),
}


@pytest.mark.parametrize("choice", CHOICES.values(), ids=CHOICES)
def test_codes_depend_on_condition_and_seed_and_not_on_the_batch(net, vectors, choice):
    seeds, empty = list(range(20, 20 + len(vectors))), torch.zeros_like(vectors)
    together = generate_codes(net, vectors, seeds, choice, empty=empty)
    order = torch.randperm(len(vectors))
    shuffled = generate_codes(net, vectors[order], [seeds[i] for i in order], choice, empty=empty)
    assert torch.equal(shuffled, together[order])
    for i in (0, CHUNK, len(vectors) - 1):
        own = generate_codes(net, vectors[i : i + 1], seeds[i : i + 1], choice, empty=empty[:1])
        assert torch.equal(own, together[i : i + 1])
    others = generate_codes(net, vectors, [seed + 50 for seed in seeds], choice, empty=empty)
    assert not torch.equal(others, together)


@pytest.mark.parametrize("kind", [DalleTransformer, CogViewTransformer])
def test_texts_with_pads_too_do_not_depend_on_the_batch(kind):
    net = shaken(kind(vocab_size=11, text_length=5, **SIZES))
    texts = torch.tensor([[9, 3, 10, 10, 10], [9, 1, 4, 2, 10]])
    together = generate_codes(net, texts, [3, 4], Choice())
    assert torch.equal(generate_codes(net, texts[:1], [3], Choice()), together[:1])
    assert torch.equal(generate_codes(net, texts[1:], [4], Choice()), together[1:])


def test_the_first_code_is_a_sample_of_the_networks_distribution(unchecked_shapes):
    net = shaken(PrefixTransformer(prefix_dim=6, **(SIZES | {"grid": 1, "num_codes": 5})))
    vector = torch.randn(1, 6)
    codes = generate_codes(net, vector.expand(2000, -1), range(2000), Choice(temperature=2.0))
    logits = net.logits(vector, codes[:1])[0, 0].detach() / 2
    expected = 2000 * logits.softmax(0).double()
    counts = codes.flatten().bincount(minlength=5).double()
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 1e-3


def test_kept_codes_stay_and_the_others_are_what_they_would_be_after_them(net, vectors):
    seeds = list(range(len(vectors)))
    made = generate_codes(net, vectors, seeds, Choice())
    kept = torch.arange(9).expand_as(made) < 4
    # a picture of one's own, completed with its own seed, is the same picture
    assert torch.equal(generate_codes(net, vectors, seeds, Choice(), known=(made, kept)), made)
    other = torch.where(kept, (made + 1) % 12, made)
    completed = generate_codes(net, vectors, seeds, Choice(), known=(other, kept))
    assert torch.equal(completed[:, :4], other[:, :4])
    assert not torch.equal(completed[:, 4:], made[:, 4:])


def test_who_watches_sees_every_code_and_may_end_the_loop(net, vectors):
    seen = []
    made = generate_codes(
        net,
        vectors,
        range(len(vectors)),
        Choice(),
        watch=lambda codes, step: seen.append((codes.clone(), step)),
    )
    assert [step for _, step in seen] == list(range(1, 19))  # 9 codes of two chunks
    assert torch.equal(seen[-1][0], made)
    assert torch.equal(seen[3][0][:CHUNK, :4], made[:CHUNK, :4])
    assert not seen[3][0][:CHUNK, 4:].any()

    def stop(codes, step):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generate_codes(net, vectors, range(len(vectors)), Choice(), watch=stop)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.55, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_set_of_the_likeliest_with_the_mass(top_p):
    logits = torch.randn(50, 12)
    kept = likeliest(logits, top_k=0, top_p=top_p).isfinite()
    for row, chosen in zip(logits.double().softmax(-1), kept, strict=True):
        mass, expected = 0.0, set()
        for code in row.argsort(descending=True).tolist():
            if mass < top_p:
                expected.add(code)
            mass += row[code].item()
        assert set(chosen.nonzero().flatten().tolist()) == expected


def test_the_likeliest_few_are_kept_and_without_limits_all():
    logits = torch.randn(50, 12)
    kept = likeliest(logits, top_k=3, top_p=1.0).isfinite()
    assert torch.equal(kept.sum(1), torch.full((50,), 3))
    assert (logits[kept].view(50, 3).amin(1) > logits.masked_fill(kept, -9).amax(1)).all()
    for top_k in (0, 12, 99):
        assert torch.equal(likeliest(logits, top_k=top_k, top_p=1.0), logits)
    # of the few the nucleus: both limits hold
    both = likeliest(logits, top_k=3, top_p=0.5).isfinite()
    few = likeliest(logits, top_k=3, top_p=1.0)
    assert torch.equal(both, likeliest(few, top_k=0, top_p=0.5).isfinite())


def test_guidance_moves_log_probabilities_and_a_scale_of_one_is_none():
    cond, empty, noise = torch.randn(3, 40, 12).unbind(0)
    found = Choice(scale=3.0)(cond, noise, empty)
    logs = empty.log_softmax(-1) + 3 * (cond.log_softmax(-1) - empty.log_softmax(-1))
    assert torch.equal(found, (logs + noise).argmax(-1))
    plain = Choice()(cond, noise, None)
    assert torch.equal(plain, (cond + noise).argmax(-1))
    assert torch.equal(Choice(scale=1.0)(cond, noise, empty), plain)
    assert not Choice(scale=1.0).guided
    assert_close(Choice(temperature=1e-4)(cond, noise, None), cond.argmax(-1))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.5}, "top_p=1.5 must lie in"),
        ({"top_p": float("nan")}, "top_p=nan must lie in"),
        ({"scale": float("inf")}, "scale=inf must be a finite number"),
    ],
)
def test_options_that_are_none_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Choice(**options)


def test_logits_that_are_nan_are_refused(net, vectors):
    net.head.bias.data[3] = torch.nan
    with pytest.raises(NotFinite, match="logits of codes are NaN or infinite"):
        generate_codes(net, vectors, range(len(vectors)), Choice())
