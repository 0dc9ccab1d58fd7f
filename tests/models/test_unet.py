"""Facts about the cross-attention U-Net."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.exchange.keymap import shapes, translate
from ldm.exchange.names import unet_rules
from ldm.models.attention import TransformerSpec
from ldm.models.blocks import sinusoidal
from ldm.models.unet import UNet

CONF = Path(__file__).parents[2] / "conf" / "backbone"


def tiny(*, levels=(True, False), num_heads=4, **changes) -> UNet:
    of_transformer = {key: changes.pop(key) for key in ("depth", "pool_context", "qk_norm") if key in changes}
    spec = TransformerSpec(context_dim=24, levels=list(levels), num_heads=num_heads, **of_transformer)
    options = {"latent_channels": 4, "channels": 32, "multipliers": [1, 2], "blocks_per_level": 2}
    return UNet(transformer=spec, **(options | changes))


def shaken(net: UNet) -> UNet:
    """The network with no layer left at zero, as after training."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 8, 6, generator=generator)
    return x, torch.tensor([3.0, 950.0])[:batch], torch.randn(batch, 5, 24, generator=generator)


def reference(*, linear: bool, depth: int, num_heads: int, **options) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=24,
        attention_head_dim=num_heads,  # their name for the number of heads
        transformer_layers_per_block=depth,
        use_linear_projection=linear,
        **options,
    ).eval()


@pytest.mark.parametrize(
    ("linear", "depth", "num_heads", "pool"), [(False, 1, 4, False), (True, 2, 8, False), (False, 1, 4, True)]
)
def test_equals_diffusers_with_the_same_weights(linear, depth, num_heads, pool):
    torch.manual_seed(0)
    options = {"addition_embed_type": "text", "addition_embed_type_num_heads": num_heads} if pool else {}
    theirs = reference(linear=linear, depth=depth, num_heads=num_heads, **options)
    ours = tiny(depth=depth, num_heads=num_heads, pool_context=pool)
    rules = unet_rules(linear_projection=linear)
    ours.load_state_dict(translate(theirs.state_dict(), rules, expected=shapes(ours.state_dict())))
    x, t, context = inputs()
    with torch.no_grad():
        assert_close(ours(x, t, context), theirs(x, t, context).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("unet_sd15", 859_520_964), ("unet_base", 69_333_892), ("unet_tiny", 6_970_144)],
)
def test_presets_have_their_sizes(preset, parameters):
    options = OmegaConf.to_container(OmegaConf.load(CONF / f"{preset}.yaml"), resolve=True)
    assert options.pop("_target_") == "ldm.models.unet.UNet"
    spec = options.pop("transformer")
    assert spec.pop("_target_") == "ldm.models.attention.TransformerSpec"
    with torch.device("meta"):
        net = UNet(transformer=TransformerSpec(**spec), **options)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_starts_with_a_prediction_of_zero():
    assert tiny()(*inputs()).abs().max() == 0


@pytest.mark.parametrize("qk_norm", [False, True])
def test_normalised_queries_and_keys_have_no_length(qk_norm):
    net = shaken(tiny(qk_norm=qk_norm))
    before = net(*inputs())
    for name, weight in net.named_parameters():
        if name.endswith("qkv.weight"):
            weight.data[: 2 * len(weight) // 3] *= 7  # the rows of q and k
        elif name.endswith("cross_attention.q.weight"):
            weight.data *= 7
    # HeadNorm's eps is 1e-6 of a mean square
    assert torch.allclose(net(*inputs()), before, atol=1e-4) == qk_norm


@pytest.mark.parametrize("pool_context", [False, True])
def test_a_projected_context_serves_in_place_of_the_tensor(pool_context):
    net = shaken(tiny(pool_context=pool_context, depth=2))
    x, t, context = inputs()
    assert torch.equal(net(x, t, net.project_context(context)), net(x, t, context))


def test_a_pool_at_zero_is_no_change():
    torch.manual_seed(0)
    pooled, plain = tiny(pool_context=True), tiny()
    plain.load_state_dict({k: v for k, v in shaken(pooled).state_dict().items() if not k.startswith("pool.")})
    x, t, context = inputs()
    assert not torch.equal(pooled(x, t, context), plain(x, t, context))
    torch.nn.init.zeros_(pooled.pool.norm_out.weight)
    torch.nn.init.zeros_(pooled.pool.norm_out.bias)
    assert torch.equal(pooled(x, t, context), plain(x, t, context))


def test_checkpointing_changes_no_gradient():
    net = shaken(tiny(pool_context=True))
    gradients = []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        net(*inputs()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    assert_close(gradients[0], gradients[1])


def test_every_parameter_gets_a_gradient():
    net = shaken(tiny(pool_context=True))
    net(*inputs()).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_the_output_reads_time_and_context():
    net = shaken(tiny())
    x, t, context = inputs()
    out = net(x, t, context)
    assert not torch.equal(out, net(x, t + 1, context))
    assert not torch.equal(out, net(x, t, context.flip(0)))


def test_fractional_multipliers_give_whole_widths():
    net = tiny(channels=64, multipliers=[1, 1.5])
    assert net.middle[0].resnet.conv_in.weight.shape[:2] == (96, 96)


@pytest.mark.parametrize("norm_groups", [2, 32])
def test_the_memory_layout_changes_no_prediction(norm_groups):
    net = shaken(tiny(norm_groups=norm_groups))
    expected = net(*inputs())
    net.memory_format = torch.contiguous_format
    assert_close(net(*inputs()), expected, atol=1e-5, rtol=1e-5)


def test_patches_fold_and_unfold_the_latents():
    net = shaken(tiny(patch=2, levels=(True, True)))
    x, t, context = inputs()
    assert net(x[..., :4], t, context).shape == (2, 4, 8, 4)
    assert net.conv_in.weight.shape[1] == net.conv_out.weight.shape[0] == 16
    assert net.factor == 4


def test_sinusoids_start_with_cosines():
    assert_close(sinusoidal(torch.zeros(1), 6), torch.tensor([[1.0, 1, 1, 0, 0, 0]]))


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="exactly one"):
        tiny(num_heads=None)
    with pytest.raises(ValueError, match="does not divide"):
        tiny(num_heads=5)
    with pytest.raises(ValueError, match="one true or false per resolution"):
        tiny(levels=(True,))
    with pytest.raises(ValueError, match="8x5 latents"):
        tiny()(inputs()[0][..., :5], *inputs()[1:])
    with pytest.raises(ValueError, match="multiple of norm_groups=32"):
        tiny(channels=48)
