"""The network of VQ-Diffusion against diffusers' at random weights, and at the published size."""

from pathlib import Path

import pytest
import torch
import yaml
from diffusers import Transformer2DModel

from ldm.construct import construct
from ldm.exchange.code_networks import RELEASED_BESIDE, diffusers_rules, released_rules
from ldm.exchange.keymap import shapes, translate
from ldm.models.code_denoiser import CodeDenoiser
from ldm.models.meta_init import meta_init

SIZES = {"num_codes": 5, "grid": 4, "num_steps": 10, "context_dim": 24, "context_length": 7}
NET = {**SIZES, "width": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def theirs():
    return Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        cross_attention_dim=24,
        attention_bias=True,
        sample_size=4,
        num_vector_embeds=6,
        num_embeds_ada_norm=10,
        norm_type="ada_norm",
        activation_fn="geglu-approximate",
    )


def random_weights(net):
    """The network with every weight away from its initial value: no bias, gain or table stays unseen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    return net.eval()


def loaded(state, rules, **options):
    net = CodeDenoiser(**NET)
    expected = shapes(net.state_dict())
    net.load_state_dict(translate(state, rules, expected=expected, **options))
    return net.eval()


def test_it_computes_what_diffusers_computes(theirs):
    state = random_weights(theirs).state_dict() | {"empty.embeddings": torch.zeros(7, 24)}
    net = loaded(state, diffusers_rules())
    x, context = torch.randint(6, (3, 16)), torch.randn(3, 7, 24)
    for t in (1, 4, 10):  # theirs counts from 0
        with torch.no_grad():
            expected = theirs(x, encoder_hidden_states=context, timestep=torch.tensor(t - 1)).sample
            found = net(x, torch.full((3,), t), context).log_softmax(dim=-1).transpose(1, 2)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # float32, in another order
        assert torch.equal(
            net(x, torch.full((3,), t), net.project_context(context)), net(x, torch.full((3,), t), context)
        )


def test_a_batch_may_have_a_timestep_for_each_picture():
    net = random_weights(CodeDenoiser(**NET))
    x, context, t = torch.randint(6, (3, 16)), torch.randn(3, 7, 24), torch.tensor([1, 5, 10])
    each = [net(x[[n]], t[[n]], context[[n]]) for n in range(3)]
    torch.testing.assert_close(net(x, t, context), torch.cat(each), rtol=0, atol=1e-5)
    assert torch.equal(net(x, t, net.project_context(context)), net(x, t, context))


def test_every_tensor_of_the_released_file_is_used_once():
    """No reference of theirs is installed: names and shapes as in their code at commit d1d3948."""
    width, state = 32, {}

    def layer(name, rows, columns=None):
        state[f"{name}.weight"] = torch.randn(*(each for each in (rows, columns) if each))
        if "emb" not in name.rpartition(".")[2]:
            state[f"{name}.bias"] = torch.randn(rows)

    for name, rows in (("emb", 6), ("height_emb", 4), ("width_emb", 4)):
        layer(f"transformer.content_emb.{name}", rows, width)
    for block in ("transformer.blocks.0", "transformer.blocks.1"):
        for norm in ("ln1", "ln1_1"):
            layer(f"{block}.{norm}.emb", 10, width)
            layer(f"{block}.{norm}.linear", 2 * width, width)
        for attention, columns in (("attn1", width), ("attn2", 24)):
            layer(f"{block}.{attention}.query", width, width)
            layer(f"{block}.{attention}.key", width, columns)
            layer(f"{block}.{attention}.value", width, columns)
            layer(f"{block}.{attention}.proj", width, width)
        layer(f"{block}.ln2", width)
        layer(f"{block}.mlp.0", 4 * width, width)
        layer(f"{block}.mlp.2", width, 4 * width)
    layer("transformer.to_logits.0", width)
    layer("transformer.to_logits.1", 5, width)
    state |= {"empty_text_embed": torch.randn(7, 24), "log_at": torch.zeros(10), "Lt_count": torch.zeros(10)}
    net = loaded(state, released_rules(), drop=RELEASED_BESIDE)
    assert torch.equal(net.empty, state["empty_text_embed"])
    assert torch.equal(
        net.blocks[1].cross_attention.kv.weight[width:], state["transformer.blocks.1.attn2.value.weight"]
    )


@pytest.mark.parametrize(("name", "millions"), [("codes_vq_diffusion_b", 388.8)])
def test_the_papers_size(name, millions):
    """VQ-Diffusion-B: 370 M in the paper, 389 M by the released config, whose MLPs are four times wide."""
    spec = yaml.safe_load((Path(__file__).parents[2] / "conf" / "backbone" / f"{name}.yaml").read_text())
    with meta_init():
        net = construct(spec)
    count = sum(weight.numel() for weight in net.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.1)
    assert count / 370e6 == pytest.approx(1, abs=0.06)
