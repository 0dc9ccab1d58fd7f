"""A text encoder trained with the denoiser: what its layers do to the context, and that they learn."""

import pytest
import torch

from ldm import UserError
from ldm.construct import construct
from ldm.models.text_encoders import ReadingDenoiser, TokenVectors

SIZES = {"vocab_size": 40, "context_length": 6, "width": 16}


@pytest.fixture
def net(backbone_spec) -> ReadingDenoiser:
    return ReadingDenoiser(net=construct(backbone_spec), context_length=6, num_layers=2, num_heads=2)


@pytest.fixture
def backbone_spec() -> dict:
    return {
        "_target_": "ldm.models.unet.UNet",
        "latent_channels": 4,
        "channels": 16,
        "multipliers": [1, 1],
        "blocks_per_level": 1,
        "norm_groups": 4,
        "transformer": {
            "_target_": "ldm.models.attention.TransformerSpec",
            "context_dim": 16,
            "pool_context": True,
            "levels": [False, True],
            "head_dim": 8,
        },
    }


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(2, 4, 8, 8), torch.rand(2) * 1000, torch.randn(2, 6, 16)


def shaken(net: ReadingDenoiser) -> ReadingDenoiser:
    """The network with no layer at the zeros that training starts from."""
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def test_vectors_are_those_of_any_other_instance_and_of_no_seed():
    torch.manual_seed(1)
    one = TokenVectors(**SIZES)
    torch.manual_seed(2)
    other = TokenVectors(**SIZES)
    tokens = torch.randint(40, (3, 6))
    assert torch.equal(one(tokens).states, other(tokens).states)
    assert torch.equal(one(tokens).pooled, one.table.weight[39].expand(3, -1))


def test_a_token_has_the_same_vector_wherever_it_stands():
    states = TokenVectors(**SIZES)(torch.tensor([[5, 7, 5], [7, 5, 5]])).states
    assert torch.equal(states[0, 0], states[1, 2])
    assert not torch.equal(states[0, 0], states[0, 1])


def test_layers_that_add_nothing_leave_the_normalised_context(net):
    shaken(net).positions.data.zero_()
    for block in net.blocks:
        for layer in (block.attention.out, block.mlp.narrow):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    x, t, context = inputs()
    read = net.norm(context)
    torch.testing.assert_close(net(x, t, context), net.net(x, t, read))


def test_a_reader_without_layers_is_refused(net):
    with pytest.raises(UserError, match="num_layers=0 must be at least 1"):
        ReadingDenoiser(net=net.net, context_length=6, num_layers=0, num_heads=2)


def test_the_order_of_tokens_matters_only_through_their_positions(net):
    x, t, context = inputs()
    moved = context[:, torch.tensor([1, 0, 2, 3, 4, 5])]
    shaken(net)
    assert not torch.allclose(net(x, t, context), net(x, t, moved), atol=1e-4)
    net.positions.data.zero_()
    torch.testing.assert_close(net(x, t, context), net(x, t, moved), atol=1e-5, rtol=1e-4)


def test_a_context_that_was_read_once_serves_every_step(net):
    x, t, context = inputs()
    projected = shaken(net).project_context(context)
    torch.testing.assert_close(net(x, t, projected), net(x, t, context))


def test_the_first_prediction_is_zero_and_the_layers_learn_once_it_is_not(net):
    x, t, context = inputs()
    assert not net(x, t, context).any()
    shaken(net)(x, t, context).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.blocks.parameters() if parameter.dim() > 1)
    assert net.positions.grad.abs().sum() > 0


def test_the_denoiser_says_what_it_reads(net):
    assert (net.latent_channels, net.context_dim) == (4, 16)


def test_a_context_longer_than_its_positions_is_refused(net):
    x, t, _ = inputs()
    with pytest.raises(UserError, match="context_length=6 is too small: the text encoder makes 7 tokens"):
        net(x, t, torch.randn(2, 7, 16))
