"""Networks are compiled as one graph each, and their attention never makes a mask."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.models.attention import AttentionPool, CrossAttention, SelfAttention, TransformerSpec
from ldm.models.clip import CLIP, TextTransformer, VisionTransformer, contrastive_loss
from ldm.models.dit import DiT
from ldm.models.packed import packed
from ldm.models.unet import UNet
from ldm.models.vae import AutoencoderKL


def unet(checkpointing: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    # only the middle has a transformer: four of the same would be read, one as the other, for seconds
    spec = TransformerSpec(context_dim=16, levels=[False], head_dim=16, ff_mult=2, pool_context=True)
    sizes = {"latent_channels": 4, "channels": 32, "multipliers": [1], "blocks_per_level": 1}
    net = UNet(**sizes, norm_groups=8, transformer=spec, checkpointing=checkpointing)
    return net, (torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 3, 16))


def dit(checkpointing: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"width": 32, "depth": 1, "num_heads": 2, "ff_mult": 2, "patch": 2}
    if not checkpointing:
        sizes |= {"depth": 2, "early_head": 1}
    net = DiT(latent_channels=4, context_dim=16, **sizes, checkpointing=checkpointing)
    return net, (torch.randn(2, 4, 8, 8), torch.rand(2), torch.randn(2, 3, 16))


def autoencoder(checkpointing: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    sizes = {"channels": 16, "multipliers": [1], "blocks_per_level": 1, "norm_groups": 8}
    net = AutoencoderKL(latent_channels=3, **sizes, checkpointing=checkpointing)
    return net, (torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8))


def clip(checkpointing: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    layers = {"width": 32, "num_layers": 1, "num_heads": 2, "embed_dim": 8, "checkpointing": checkpointing}
    text = TextTransformer(vocab_size=60, context_length=6, **layers)
    net = CLIP(text=text, image=VisionTransformer(image_size=16, patch_size=8, **layers))
    return net, (torch.randn(2, 3, 16, 16), torch.randint(0, 59, (2, 6)))


def loss_of(net: nn.Module, outputs: object) -> Tensor:
    if isinstance(net, CLIP):
        return contrastive_loss(*outputs)
    if isinstance(net, AutoencoderKL):
        decoded, posterior = outputs
        return decoded.square().mean() + posterior.kl().mean()
    output, states = outputs
    return output.square().mean() + sum(state.square().mean() for state in states.values())


BUILDS = (unet, dit, autoencoder, clip)


def compile_all() -> None:
    """Compiles each network as one graph; raises where the graph would break, or computes something else.

    What is traced inside activation checkpointing may do less than what isn't, so one network has none.
    """
    torch.set_num_threads(1)
    for build, checkpointing in (*((build, True) for build in BUILDS), (dit, False)):
        torch.manual_seed(0)
        net, inputs = build(checkpointing)
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
        if hasattr(net, "hidden"):  # with its hidden states, which terms of a training read
            early = ("early",) if getattr(net, "early_head", None) else ()
            inputs = (*inputs, (*net.hidden, *early))
        expected, found = loss_of(net, net(*inputs)), loss_of(net, compiled(*inputs))
        torch.testing.assert_close(found, expected)
        found.backward()
        assert all(p.grad is not None for p in net.parameters()), build
    net.compile(backend="aot_eager")
    with torch.no_grad(), packed(net):  # a packed layer would be traced again, and the compiler can't read it
        assert not any("forward" in vars(module) for module in net.modules())


def test_networks_are_one_graph_forward_and_backward():
    """In a process of its own, where no types are checked: the compiler would read the checks as well."""
    ended = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


class Attentions(TorchFunctionMode):
    """Notes the options of each call of torch's attention, and calls that make a softmax by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.options: list[dict] = []
        self.by_hand = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.nn.functional.scaled_dot_product_attention:
            self.options.append(dict(kwargs or {}))
        self.by_hand += function in (Tensor.softmax, torch.softmax)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("build", BUILDS)
def test_attention_on_a_device_is_one_call_without_a_mask(build):
    net, inputs = build(False)
    there = [each.to("meta") for each in inputs]
    with Attentions() as mode, torch.no_grad():
        net.to("meta")(*there)
    kinds = (SelfAttention, CrossAttention, AttentionPool)
    assert len(mode.options) == sum(isinstance(module, kinds) for module in net.modules())
    assert all(options.get("attn_mask") is None for options in mode.options)
    assert mode.by_hand == 0


if __name__ == "__main__":
    compile_all()
