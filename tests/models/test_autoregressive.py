"""Facts about the networks of DALL-E, CogView and CLIP-GEN."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm import UserError
from ldm.construct import construct
from ldm.models.autoregressive import CogViewTransformer, DalleTransformer, PrefixTransformer
from ldm.models.code_transformer import Continuation
from ldm.models.meta_init import meta_init
from tests.fixtures import option

WORDS, TEXT, CODES, GRID = 11, 5, 7, 3
START, END = WORDS - 2, WORDS - 1
SIZES = {"num_codes": CODES, "grid": GRID, "width": 16, "depth": 2, "num_heads": 2}
TOKENS = {"vocab_size": WORDS, "text_length": TEXT} | SIZES
TEXTS = torch.tensor([[START, 3, END, END, END], [START, 1, 4, 2, END]])  # the first one has pads


def shaken(net):
    """A network none of whose values is at its first one."""
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return net.eval()


KINDS = {
    "DALL-E": lambda: DalleTransformer(**TOKENS, kernel=1),
    "minDALL-E": lambda: DalleTransformer(**TOKENS, sparse=False, axial=False, own_pads=False),
    "CogView": lambda: CogViewTransformer(**TOKENS),
    "CLIP-GEN": lambda: PrefixTransformer(prefix_dim=6, **SIZES),
}


@pytest.fixture(params=KINDS)
def net(request):
    return shaken(KINDS[request.param]())


@pytest.fixture
def condition(net):
    return torch.randn(2, 6) if isinstance(net, PrefixTransformer) else TEXTS


@pytest.fixture
def codes():
    return torch.randint(CODES, (2, GRID**2))


def test_cached_logits_are_those_of_one_pass(net, condition, codes):
    following = Continuation(net, net.prompt(condition))
    steps = [following(), *(following(codes[:, i : i + 1]) for i in range(GRID**2 - 1))]
    # sums in other orders; logits of about 3
    assert_close(torch.stack(steps, dim=1), net.logits(condition, codes), rtol=1e-5, atol=1e-5)
    at_once = Continuation(net, net.prompt(condition))
    at_once()
    assert_close(at_once(codes[:, :4]), steps[4], rtol=1e-5, atol=1e-5)


def test_to_compile_it_is_to_compile_its_trunk():
    net = KINDS["CLIP-GEN"]()
    net.compile(backend="eager")
    assert net.trunk._compiled_call_impl is not None
    assert net._compiled_call_impl is None


def test_a_code_changes_no_logit_up_to_its_own(net, condition, codes):
    changed = codes.clone()
    changed[:, 4] = (codes[:, 4] + 1) % CODES
    before, after = net.logits(condition, codes), net.logits(condition, changed)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_the_condition_changes_the_first_logits(net, condition, codes):
    other = condition.flip(0)
    assert not torch.allclose(net.logits(condition, codes)[:, 0], net.logits(other, codes)[:, 0])


def test_equal_logits_cost_the_logarithm_of_their_number():
    net = DalleTransformer(**TOKENS)
    for head in (net.head_text, net.head_codes):
        nn.init.zeros_(head.weight)
    nats = net.nats(TEXTS, torch.randint(CODES, (2, GRID**2)))
    assert_close(nats.text, torch.full((2, TEXT - 1), math.log(WORDS + TEXT)))
    assert_close(nats.image, torch.full((2, GRID**2), math.log(CODES)))


def test_dalles_pads_are_tokens_of_their_places():
    net = DalleTransformer(**TOKENS)
    assert net.words(TEXTS).tolist() == [[START, 3, END, WORDS + 3, WORDS + 4], TEXTS[1].tolist()]


def test_cogviews_sequence_is_that_without_pads(codes):
    """The first text has two pads: a network for texts of three tokens, with the same weights, has none."""
    net = shaken(CogViewTransformer(**TOKENS))
    short = CogViewTransformer(**(TOKENS | {"text_length": 3}))
    state = net.state_dict()
    state["places.weight"] = state["places.weight"][: len(short.places.weight)]
    short.load_state_dict(state)
    padded, alone = net.nats(TEXTS[:1], codes[:1]), short.nats(TEXTS[:1, :3], codes[:1])
    assert_close(padded.image, alone.image, rtol=1e-5, atol=1e-5)
    assert padded.counted.tolist() == [[True, True, False, False, True, True]]
    assert_close(padded.text[padded.counted], alone.text[0], rtol=1e-5, atol=1e-5)
    assert_close(
        net.logits(TEXTS[:1], codes[:1]), short.logits(TEXTS[:1, :3], codes[:1]), rtol=1e-5, atol=1e-5
    )
    padded, alone = net.caption_nats(TEXTS[:1], codes[:1]), short.caption_nats(TEXTS[:1, :3], codes[:1])
    assert_close(padded.text[padded.counted], alone.text[0], rtol=1e-5, atol=1e-5)
    assert padded.counted.tolist() == [[True, True, False, False]]


def test_cogviews_likelihoods_are_of_its_whole_sequence(codes):
    """[ROI1] text [BASE] [BOI1] codes [EOI1] token by token, for a text without pads."""
    net = shaken(CogViewTransformer(**TOKENS))
    text, own = TEXTS[1:], codes[1:]
    ids = torch.cat([text[0], torch.tensor([WORDS]), WORDS + 2 + own[0], torch.tensor([WORDS + 1])])
    both = torch.cat([net.text.weight, net.codes.weight])
    x = both[ids[:-1]] + net.places.weight[: len(ids) - 1]
    logs = (net.trunk(x[None]) @ both.T).log_softmax(-1)[0]
    expected = -logs[torch.arange(len(ids) - 1), ids[1:]]
    nats = net.nats(text, own)
    places = [*range(TEXT - 1), TEXT - 1, len(ids) - 2]  # the text, [BOI1], [EOI1]
    assert_close(nats.text[0], expected[places], rtol=1e-5, atol=1e-5)
    assert_close(nats.image[0], expected[TEXT:-1], rtol=1e-5, atol=1e-5)


def test_cogviews_embeddings_get_a_tenth_of_their_gradient(codes):
    gradients = []
    for shrink in (1.0, 0.1):
        torch.manual_seed(0)
        net = CogViewTransformer(**TOKENS, shrink=shrink)
        net.nats(TEXTS, codes).image.sum().backward()
        gradients.append((net.places.weight.grad, net.trunk.layers[1].mlp.wide.weight.grad))
    (full, deep), (shrunk, same) = gradients
    assert_close(shrunk, 0.1 * full, rtol=1e-4, atol=1e-6)
    assert_close(deep, same, rtol=1e-5, atol=1e-6)


def test_clip_gens_codes_do_not_depend_on_the_length_of_the_vector(codes):
    net, vector = shaken(KINDS["CLIP-GEN"]()), torch.randn(2, 6)
    # a power of two changes no bit of the quotient
    assert torch.equal(net.logits(vector, codes), net.logits(1024 * vector, codes))
    assert net.logits(torch.zeros(2, 6), codes).isfinite().all()
    assert net.prompt(vector).embeddings.shape[1] + GRID**2 - 1 == len(
        net.places.weight
    )  # L - 1 codes follow


@pytest.mark.parametrize("tokens", [TEXTS[:, :4], torch.cat([TEXTS, TEXTS], dim=1)])
def test_a_text_of_another_length_is_refused(tokens, codes):
    for kind in ("DALL-E", "CogView"):
        with pytest.raises(UserError, match=r"backbone\.text_length=5, but the tokenizer's texts have"):
            KINDS[kind]().nats(tokens, codes)


@pytest.mark.parametrize(
    ("name", "published", "within"),
    [
        ("dalle", 12e9, 0.03),  # Ramesh et al. 2021, sec. 2.2
        ("mindalle", 1.3e9, 0.02),  # its README
        ("cogview", 4e9, 0.02),  # Ding et al. 2021, sec. 2.3
        ("clipgen", 0.34e9, 0.01),  # GPT-2 medium's layers between tables of 16,384 codes
    ],
)
def test_the_papers_sizes_have_the_published_number_of_parameters(name, published, within):
    spec = option("backbone", name)
    with meta_init():
        built = construct(spec)
    count = sum(parameter.numel() for parameter in built.parameters())
    assert abs(count / published - 1) < within
