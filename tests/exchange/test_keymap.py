"""Facts about the strict rename engine."""

import diffusers
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.testing import assert_close

from ldm.exchange.keymap import Rule, linear, merge, rename, reverse, shapes, translate, transpose
from ldm.exchange.names import unet_rules, vae_rules
from ldm.models.attention import TransformerSpec
from ldm.models.unet import UNet
from ldm.models.vae import AutoencoderKL

RULES = [
    rename("block.{}.norm1.*", "blocks.{}.norm_in.*"),
    merge(["block.{}.q.weight", "block.{}.k.weight"], "blocks.{}.qk.weight"),
    linear("proj.weight", "proj.weight"),
    transpose("head", "head.weight"),
]


def theirs() -> dict[str, torch.Tensor]:
    return {
        "block.0.norm1.weight": torch.randn(2),
        "block.0.norm1.bias": torch.randn(2),
        "block.0.k.weight": torch.randn(2, 3),
        "block.0.q.weight": torch.randn(2, 3),
        "proj.weight": torch.randn(2, 3, 1, 1),
        "head": torch.randn(3, 5),
    }


EXPECTED = {
    "blocks.0.norm_in.weight": torch.Size([2]),
    "blocks.0.norm_in.bias": torch.Size([2]),
    "blocks.0.qk.weight": torch.Size([4, 3]),
    "proj.weight": torch.Size([2, 3]),
    "head.weight": torch.Size([5, 3]),
}


def test_there_and_back_is_the_same_state():
    state = theirs()
    ours = translate(state, RULES, expected=EXPECTED)
    assert_close(
        ours["blocks.0.qk.weight"], torch.cat([state["block.0.q.weight"], state["block.0.k.weight"]])
    )
    back = translate(ours, reverse(RULES), expected=shapes(state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_one_error_names_everything_that_does_not_fit():
    state = theirs() | {"stray": torch.zeros(1), "head": torch.zeros(3, 4)}
    del state["block.0.q.weight"]
    with pytest.raises(ValueError, match="do not fit") as error:
        translate(state, RULES, expected=EXPECTED)
    message = str(error.value)
    assert "missing block.0.q.weight" in message
    assert "missing blocks.0.qk.weight" in message
    assert "unexpected stray" in message
    assert "shape of head.weight is (4, 3), wanted (5, 3)" in message


def test_a_dropped_tensor_is_named_or_refused():
    state = theirs() | {"ids.mask": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"unexpected ids\.mask"):
        translate(state, RULES, expected=EXPECTED)
    assert translate(state, RULES, expected=EXPECTED, drop=["ids.*"]).keys() == EXPECTED.keys()


def test_a_tensor_belongs_to_one_rule():
    with pytest.raises(ValueError, match="claimed by 2 rules"):
        translate(theirs(), [*RULES, rename("proj.weight", "other")], expected=EXPECTED)


def test_two_tensors_do_not_become_one():
    state = theirs() | {"copy": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match=r"made twice proj\.weight"):
        translate(state, [*RULES, rename("copy", "proj.weight")], expected=EXPECTED)


@pytest.mark.parametrize("linear_projection", [False, True])
def test_our_unet_exports_to_every_tensor_of_theirs_and_back(linear_projection):
    spec = TransformerSpec(context_dim=8, levels=[True, False], num_heads=2)
    options = {"latent_channels": 4, "channels": 32, "multipliers": [1, 1], "blocks_per_level": 1}
    net = UNet(**options, transformer=spec)
    reference = UNet2DConditionModel(
        block_out_channels=(32, 32),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        use_linear_projection=linear_projection,
    )
    assert_round_trip(net, reference, unet_rules(linear_projection=linear_projection))


def test_our_vae_exports_to_every_tensor_of_theirs_and_back():
    vae = AutoencoderKL(channels=8, multipliers=[1, 2], blocks_per_level=2, latent_channels=2, norm_groups=8)
    reference = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 16],
        layers_per_block=2,
        latent_channels=2,
        norm_num_groups=8,
    )
    assert_round_trip(vae, reference, vae_rules())


def assert_round_trip(ours: nn.Module, reference: nn.Module, rules: list[Rule]) -> None:
    state = ours.state_dict()
    exported = translate(state, reverse(rules), expected=shapes(reference.state_dict()))
    back = translate(exported, rules, expected=shapes(state))
    assert all(torch.equal(back[name], state[name]) for name in state)
