"""Facts of VQ-VAE-2's priors, transformer and masked convolutions: causality, likelihoods, sampled codes."""

import math
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from ldm import UserError
from ldm.construct import construct
from ldm.generators.token_loop import Choice, generate_codes
from ldm.models.code_transformer import CodeNetwork
from ldm.models.convolutional_tokenizers import TwoLevelTokenizer
from ldm.models.meta_init import meta_init
from ldm.models.quantizers import VectorQuantizer
from ldm.models.two_level import PixelPrior, TransformerPrior, TwoLevelPriors

TEXT = {"num_codes": 5, "grid": 4, "width": 16, "num_heads": 2, "context_dim": 6}
FINE = {"num_codes": 7, "grid": 4, "width": 16, "num_heads": 2, "coarse": {"num_codes": 5, "grid": 2}}
FINER = FINE | {"grid": 8, "coarse": {"num_codes": 5, "grid": 4}}
KINDS = {TransformerPrior: {"depth": 2}, PixelPrior: {"blocks": 2, "residuals": 2, "kernel": 3}}


def random_weights(net):
    """The network with every weight away from its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.2)
    return net.eval().requires_grad_(False)


def condition_of(options, rows=2):
    generator = torch.Generator().manual_seed(1)
    if "coarse" in options:
        return torch.randint(5, (rows, 4), generator=generator)
    return torch.randn(rows, 3, 6, generator=generator)


CASES = [(kind, options) for kind in KINDS for options in (TEXT, FINE)]


@pytest.fixture(
    params=CASES, ids=lambda case: f"{case[0].__name__}-{'fine' if 'coarse' in case[1] else 'text'}"
)
def prior(request):
    kind, options = request.param
    return random_weights(kind(**options, **KINDS[kind])), condition_of(options)


def test_a_logit_depends_on_the_codes_before_it_alone_and_on_all_of_them_or_most(prior):
    net, condition = prior
    codes = torch.randint(net.num_codes, (2, net.length), generator=torch.Generator().manual_seed(2))
    logits = net.logits(condition, codes)
    assert isinstance(net, CodeNetwork)
    for place in (0, 5, net.length - 2):
        other = codes.clone()
        other[:, place] = (other[:, place] + 1) % net.num_codes
        changed = (net.logits(condition, other) != logits).any(dim=-1).any(dim=0)
        assert not changed[: place + 1].any()
        assert changed[place + 1]


def test_the_gradient_to_this_and_later_codes_is_exactly_zero():
    """The same by autograd, through the embeddings."""
    net = random_weights(PixelPrior(**TEXT, **KINDS[PixelPrior]))
    codes = torch.randint(5, (1, 16))
    embedded = net.codes(codes).detach().requires_grad_()
    net.codes.forward = lambda _: embedded
    net.logits(condition_of(TEXT, 1), codes)[0, 6].sum().backward()
    assert torch.equal(embedded.grad[0, 6:], torch.zeros(10, 16))
    assert (embedded.grad[0, :6] != 0).any(dim=1).all()


def test_code_after_code_has_the_logits_of_one_pass(prior):
    net, condition = prior
    codes = torch.randint(net.num_codes, (2, net.length))
    whole, following = net.logits(condition, codes), net.continuation(condition)
    steps = [following(None)] + [following(codes[:, [place]]) for place in range(net.length - 1)]
    # float32 in another order; logits are of the size of 1
    torch.testing.assert_close(torch.stack(steps, dim=1), whole, rtol=0, atol=1e-4)


def test_the_condition_is_read(prior):
    net, condition = prior
    codes = torch.zeros(2, net.length, dtype=torch.int64)
    other = (condition + 1) % 5 if condition.dtype == torch.int64 else condition + 1
    assert (net.logits(condition, codes) != net.logits(other, codes)).any(dim=-1).all()


def test_coarse_codes_reach_the_fine_places_below_them():
    net = random_weights(TransformerPrior(**FINER, depth=1))
    coarse = torch.zeros(1, 16, dtype=torch.int64)
    aligned = net.coarse(coarse).view(8, 8, 16)
    assert torch.equal(aligned[0::2], aligned[1::2])  # nearest neighbours
    for block in net.coarse.blocks:
        for layer in block[1::2]:
            layer.weight.zero_()
            layer.bias.zero_()
    coarse[0, 5] = 3
    moved = (net.coarse(coarse).view(8, 8, 16) != net.coarse(coarse * 0).view(8, 8, 16)).any(dim=-1)
    assert moved.nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]


def test_likelihoods_add_up_and_a_uniform_prior_takes_ln_k_for_each_code():
    priors = TwoLevelPriors(
        top=TransformerPrior(**TEXT, depth=1), bottom=PixelPrior(**FINER, **KINDS[PixelPrior])
    )
    top, bottom = torch.randint(5, (2, 16)), torch.randint(7, (2, 64))
    context = condition_of(TEXT)
    of_top, of_bottom = priors.nats(context, top, bottom)
    expected = F.cross_entropy(priors.top.logits(context, top).transpose(1, 2), top, reduction="none")
    torch.testing.assert_close(of_top, expected)
    for net in (priors.top, priors.bottom):
        net.head.weight.data.zero_()
    of_top, of_bottom = priors.nats(context, top, bottom)
    total = of_top.sum(dim=1) + of_bottom.sum(dim=1)
    torch.testing.assert_close(total, torch.full((2,), 16 * math.log(5) + 64 * math.log(7)))


def test_the_probabilities_of_all_pictures_sum_to_one():
    """Every one of the 2^4 pictures of a 2 x 2 grid of two codes."""
    small = {"num_codes": 2, "grid": 2, "width": 8, "num_heads": 2, "context_dim": 6}
    every = torch.cartesian_prod(*[torch.arange(2)] * 4)
    for kind, options in KINDS.items():
        net = random_weights(kind(**small, **options))
        nats = net.nats(condition_of(TEXT, 1).expand(16, -1, -1), every).image.sum(dim=1)
        assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-5)


def test_a_picture_has_the_same_codes_whatever_its_batch(prior):
    net, condition = prior
    rows = torch.cat([condition, condition.flip(0)])
    together = generate_codes(net, rows, [3, 4, 5, 6], Choice())
    alone = generate_codes(net, rows[2:3], [5], Choice())
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(together[0], together[3])


def test_compiled_are_trunks_and_blocks():
    fine = {"num_codes": 8, "grid": 4, "coarse": {"num_codes": 8, "grid": 2}, "width": 16, "num_heads": 2}
    top = TransformerPrior(num_codes=8, grid=2, context_dim=16, width=16, depth=1, num_heads=2)
    for bottom, parts in (
        (TransformerPrior(**fine, depth=1), {"bottom.trunk"}),
        (PixelPrior(**fine, blocks=2, residuals=1), {"bottom.blocks.0", "bottom.blocks.1"}),
    ):
        net = TwoLevelPriors(top=deepcopy(top), bottom=bottom)
        net.compile(backend="eager")
        compiled = {own for own, module in net.named_modules() if module._compiled_call_impl is not None}
        assert compiled == {"top.trunk"} | parts


def test_priors_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="give exactly one"):
        TransformerPrior(**{**TEXT, "context_dim": None}, depth=1)
    with pytest.raises(UserError, match="give exactly one"):
        PixelPrior(**{**FINE, "context_dim": 3}, **KINDS[PixelPrior])
    with pytest.raises(UserError, match=r"bottom reads \(5, 2\)"):
        TwoLevelPriors(top=TransformerPrior(**TEXT, depth=1), bottom=TransformerPrior(**FINE, depth=1))
    with pytest.raises(UserError, match="kernel=4 must be odd"):
        PixelPrior(**FINE, **KINDS[PixelPrior] | {"kernel": 4})
    with pytest.raises(UserError, match="no multiple of"):
        TransformerPrior(**{**FINE, "grid": 5}, depth=1)


def test_the_papers_sizes():
    """The paper has layers and channels and no number of weights; of the kernels half is masked."""
    for name, text, millions in (
        ("vqvae2", 512, 846.7),
        ("vqvae2_tiny", 128, 8.6),
        ("vqvae2_pixel_tiny", 128, 5.9),
    ):
        path = Path(__file__).parents[2] / "conf" / "backbone" / f"{name}.yaml"
        spec = yaml.safe_load(path.read_text().replace("${text_encoder.width}", str(text)))
        with meta_init():
            net = construct(spec)
        found = sum(weight.numel() for weight in net.parameters()) / 1e6
        assert found == pytest.approx(millions, abs=0.1), name


def test_the_pictures_of_bottom_codes_are_worse_with_the_top_codes_of_others(unchecked_shapes):
    """The tokenizer, after a second on eight pictures of one colour; measured once: 0.31 against 0.14."""
    torch.manual_seed(1)
    corners = torch.cartesian_prod(*[torch.tensor([-0.7, 0.7])] * 3)
    images = corners[:, :, None, None].expand(8, 3, 16, 16).contiguous()
    levels = {name: VectorQuantizer(num_codes=16, dim=8) for name in ("top", "bottom")}
    net = TwoLevelTokenizer(size=16, channels=16, residual_blocks=1, residual_channels=8, **levels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(200):
        maps, quantized = net(images)
        loss = F.mse_loss(net.pictures(maps), images) + sum(each.loss for each in quantized)
        optimizer.zero_grad()
        loss.backward()
        for level, each in zip(net.quantizers(), quantized, strict=True):
            level.update(level.statistics(each, torch.randn(each.codes.shape)))
        optimizer.step()
    net.eval()
    with torch.no_grad():
        top, bottom = net.encode(images).split([4, 16], dim=1)
        pictures = [net.decode(torch.cat([each, bottom], dim=1)) for each in (top, top.roll(1, dims=0))]
    true, shuffled = (F.mse_loss(each, images).item() for each in pictures)
    assert shuffled > 1.2 * true
