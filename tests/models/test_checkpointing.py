"""Facts about computing activations again: less is kept, the gradients are the same."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.testing import assert_close

from ldm.models.blocks import apply
from ldm.models.clip import CLIP, TextTransformer, VisionTransformer, contrastive_loss
from ldm.models.vae import AutoencoderKL


def autoencoder_loss(checkpointing: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    net = AutoencoderKL(
        channels=16,
        multipliers=[1, 2],
        blocks_per_level=1,
        latent_channels=3,
        norm_groups=8,
        checkpointing=checkpointing,
    )
    decoded, posterior = net(torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8))
    return net, decoded.square().mean() + posterior.kl().mean()


def clip_loss(checkpointing: bool) -> tuple[torch.nn.Module, torch.Tensor]:
    layers = {"width": 32, "num_layers": 3, "num_heads": 4, "embed_dim": 24, "checkpointing": checkpointing}
    text = TextTransformer(vocab_size=600, context_length=12, **layers)
    net = CLIP(text=text, image=VisionTransformer(image_size=16, patch_size=4, **layers))
    return net, contrastive_loss(*net(torch.randn(2, 3, 16, 16), torch.randint(0, 599, (2, 12))))


@pytest.mark.parametrize("loss_of", [autoencoder_loss, clip_loss])
def test_checkpointing_keeps_less_and_changes_no_gradient(loss_of):
    kept, gradients = [], []
    for checkpointing in (False, True):
        saved: dict[int, int] = {}

        def pack(tensor, saved=saved):
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            net, loss = loss_of(checkpointing)
            loss.backward()
        kept.append(sum(saved.values()))
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert kept[1] < kept[0]
    assert_close(gradients[0], gradients[1])


def test_nothing_is_computed_twice_without_gradients():
    calls = []
    layer = torch.nn.Linear(2, 2)
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        apply(layer, torch.ones(1, 2), recompute=True)
    apply(layer, torch.ones(1, 2), recompute=True).sum().backward()
    assert len(calls) == 3  # once, then forward and again for backward
