"""Facts about the diffusion transformer."""

from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from omegaconf import OmegaConf
from torch.testing import assert_close

from ldm.construct import construct
from ldm.models.attention import CrossAttention
from ldm.models.blocks import axial_angles, rotate
from ldm.models.dit import Block, DiT

CONF = Path(__file__).parents[2] / "conf" / "backbone"
CPU = torch.device("cpu")


def tiny(**changes) -> DiT:
    options = {"latent_channels": 4, "context_dim": 24, "width": 32, "depth": 3, "num_heads": 4}
    return DiT(**(options | {"ff_mult": 2, "patch": 2, "long_skips": True} | changes))


def shaken(net):
    """The network with no layer left at zero, as after training."""
    torch.manual_seed(1)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return net


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 8, 6, generator=generator)
    return x, torch.tensor([3.0, 950.0])[:batch], torch.randn(batch, 5, 24, generator=generator)


def block_inputs(block: Block) -> tuple:
    tokens, time = torch.randn(2, 6, 32), torch.randn(2, 6, 32)
    return (
        tokens,
        time,
        axial_angles(3, 2, 8, device=CPU),
        block.cross_attention.project(torch.randn(2, 5, 24)),
    )


def count(preset: str) -> int:
    spec = OmegaConf.to_container(OmegaConf.load(CONF / f"{preset}.yaml"), resolve=True)
    with torch.device("meta"):
        return sum(p.numel() for p in construct(spec).parameters())


@pytest.mark.parametrize(
    ("preset", "parameters", "peer", "within"),
    [("dit_base", 68_906_640, "unet_base", 0.02), ("dit_tiny", 7_272_224, "unet_tiny", 0.05)],
)
def test_presets_are_as_large_as_the_u_nets(preset, parameters, peer, within):
    assert count(preset) == parameters == pytest.approx(count(peer), rel=within)


def test_starts_with_a_prediction_of_zero():
    assert tiny()(*inputs()).abs().max() == 0


def test_a_block_starts_as_the_identity_and_a_skip_as_none():
    net = tiny()
    for block in net.blocks:
        tokens, time, angles, pair = block_inputs(block)
        earlier = torch.randn_like(tokens) if block.merge is not None else None
        assert_close(block(tokens, 0 * time, angles, pair, earlier), tokens)
    assert [block.merge is not None for block in net.blocks] == [False, False, True]


def test_a_projected_context_serves_in_place_of_the_tensor():
    net = shaken(tiny())
    x, t, context = inputs()
    assert torch.equal(net(x, t, net.project_context(context)), net(x, t, context))


def test_checkpointing_changes_no_gradient():
    net = shaken(tiny())
    gradients = []
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        net(*inputs()).square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in net.named_parameters()})
    assert_close(gradients[0], gradients[1])


def test_every_parameter_gets_a_gradient():
    net = shaken(tiny())
    net(*inputs()).square().mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_the_output_reads_time_context_and_the_long_skip():
    net = shaken(tiny())
    x, t, context = inputs()
    out = net(x, t, context)
    assert not torch.equal(out, net(x, t + 1, context))
    assert not torch.equal(out, net(x, t, context.flip(0)))
    net.blocks[2].merge.weight.data[:, 32:] = 0
    assert not torch.equal(out, net(x, t, context))


def test_a_patch_of_the_output_is_where_its_input_was():
    net = tiny(depth=1, long_skips=False)
    net.patches_out.weight.data = torch.eye(16, 32)  # the blocks are the identity, so the net is its two ends
    net.patches_in.weight.data = torch.eye(32, 16)
    net.patches_in.bias.data.zero_()
    x, t, context = inputs()
    patches = (
        x.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)
    )  # b h w 16, by torch alone
    padded = torch.nn.functional.pad(patches, (0, 16))
    expected = torch.nn.functional.layer_norm(padded, (32,))[..., :16]
    found = net(x, t, context).unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert_close(found, expected)


def test_any_size_that_patches_divide_is_served():
    net = shaken(tiny())
    _, t, context = inputs()
    assert net(torch.randn(2, 4, 12, 4), t, context).shape == (2, 4, 12, 4)


def test_without_places_a_block_does_not_know_the_order_of_its_tokens():
    block = shaken(Block(32, 24, num_heads=4, ff_mult=2))
    tokens, time, angles, pair = block_inputs(block)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    nowhere = torch.zeros_like(angles)
    assert_close(block(tokens[:, order], time, nowhere, pair), block(tokens, time, nowhere, pair)[:, order])
    assert not torch.allclose(
        block(tokens[:, order], time, angles, pair), block(tokens, time, angles, pair)[:, order]
    )


def test_turned_queries_and_keys_meet_by_their_distance_alone():
    query, key = torch.randn(2, 1, 1, 1, 16).double()
    angles = axial_angles(7, 5, 16, device=CPU).view(7, 5, 8)

    def logit(at: tuple[int, int], to: tuple[int, int]) -> torch.Tensor:
        return (rotate(query, angles[at][None]) * rotate(key, angles[to][None])).sum()

    assert_close(logit((0, 1), (2, 4)), logit((4, 0), (6, 3)), atol=1e-6, rtol=0)  # angles are float32
    assert not torch.isclose(logit((0, 1), (2, 4)), logit((0, 1), (4, 2)))


def test_rotation_equals_diffusers():
    x, angles = torch.randn(2, 3, 12, 16), axial_angles(4, 3, 16, device=CPU)
    doubled = torch.cat([angles, angles], dim=1)
    theirs = apply_rotary_emb(x, (doubled.cos(), doubled.sin()), use_real_unbind_dim=-2)
    assert_close(rotate(x, angles), theirs)


def test_attention_with_normalised_heads_equals_diffusers():
    ours = shaken(CrossAttention(32, 24, num_heads=4, qk_norm=True))
    theirs = Attention(32, cross_attention_dim=24, heads=4, dim_head=8, qk_norm="rms_norm", eps=1e-6)
    keys, values = ours.kv.weight.chunk(2)
    theirs.load_state_dict(
        {"to_q.weight": ours.q.weight, "to_k.weight": keys, "to_v.weight": values}
        | {"norm_q.weight": ours.norm_q.weight, "norm_k.weight": ours.norm_k.weight}
        | {"to_out.0.weight": ours.out.weight, "to_out.0.bias": ours.out.bias}
    )
    tokens, context = torch.randn(2, 6, 32), torch.randn(2, 5, 24)
    expected = theirs(tokens, encoder_hidden_states=context)
    assert_close(ours(tokens, ours.project(context)), expected, atol=1e-5, rtol=0)


def by_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, prepare) -> torch.Tensor:
    """Softmax attention of four heads of 8 features; `prepare(x, which)` changes queries and keys."""
    mixed = []
    for own in (slice(8 * head, 8 * head + 8) for head in range(4)):
        logits = prepare(q[..., own], "norm_q") @ prepare(k[..., own], "norm_k").transpose(1, 2) / 8**0.5
        mixed.append(logits.softmax(-1) @ v[..., own])
    return torch.cat(mixed, -1)


def normal(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


def test_a_block_is_its_equations():
    block = shaken(Block(32, 24, num_heads=4, ff_mult=2, merges=True)).double()
    own, cross = block.self_attention, block.cross_attention
    angles = axial_angles(3, 2, 8, device=CPU)
    tokens, earlier, time = torch.randn(3, 2, 6, 32).double()
    context = torch.randn(2, 5, 24).double()

    def unit(x, norm):
        return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def turned(x, which):
        pairs = torch.complex(*unit(x, getattr(own, which)).chunk(2, -1)) * torch.exp(1j * angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    shift, scale, gate, shift_ff, scale_ff, gate_ff = (block.table + time).transpose(0, 1)[:, :, None]
    x = torch.cat([tokens, earlier], -1) @ block.merge.weight.T + block.merge.bias
    qkv = (normal(x) * (1 + scale) + shift) @ own.qkv.weight.T
    x = x + gate * (by_heads(*qkv.split(32, -1), turned) @ own.out.weight.T + own.out.bias)
    q = (normal(x) * block.norm_cross.weight + block.norm_cross.bias) @ cross.q.weight.T
    kv = (context @ cross.kv.weight.T).split(32, -1)
    mixed = by_heads(q, *kv, lambda x, which: unit(x, getattr(cross, which)))
    x = x + mixed @ cross.out.weight.T + cross.out.bias
    x = x + gate_ff * block.ff(normal(x) * (1 + scale_ff) + shift_ff)
    found = block(tokens, time, angles, cross.project(context), earlier)
    assert_close(found, x, atol=1e-6, rtol=0)  # the angles are float32


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads of a multiple of 4 features"):
        tiny(num_heads=3)
    with pytest.raises(ValueError, match="make it odd"):
        tiny(depth=4)
    with pytest.raises(ValueError, match="8x5 latents do not divide by 2"):
        tiny()(inputs()[0][..., :5], *inputs()[1:])
