"""Facts about how soon a denoiser learns from its text: what `make demo` depends on, at a small size."""

import pytest
import torch

from ldm.models.attention import TransformerSpec
from ldm.models.unet import UNet
from ldm.stages.muon import Muon
from ldm.stages.optim import parameter_groups, warmup_constant

PICTURES, SIDE = 16, 4
TOKENS, PADS, WIDTH = 10, 22, 32  # captions as emoji have them: ten tokens of 32, the rest alike
STEPS, LEARNING_RATE = 50, 5e-3


def unet() -> UNet:
    spec = TransformerSpec(context_dim=WIDTH, levels=[True, True], pool_context=True, head_dim=16, ff_mult=2)
    sizes = {"latent_channels": 4, "channels": 32, "multipliers": [1, 1], "blocks_per_level": 1}
    return UNet(transformer=spec, norm_groups=8, **sizes)


def captions(generator: torch.Generator) -> torch.Tensor:
    """Text states of one caption for each picture."""
    own = torch.randn(PICTURES, TOKENS, WIDTH, generator=generator)
    pads = torch.randn(1, PADS, WIDTH, generator=generator).expand(PICTURES, -1, -1)
    return torch.cat([own, pads + 0.1 * torch.randn(PICTURES, PADS, WIDTH, generator=generator)], dim=1)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("make", [unet])
def test_in_a_few_steps_the_text_decides_half_of_the_picture(make):
    """At pure noise a network that does not read its text has a loss of 1, the variance of the pictures.

    Measured once: 0.17 of the variance, and 0.90 if the pool of the text starts at zero.
    """
    torch.manual_seed(0)
    net, generator = make(), torch.Generator().manual_seed(1)
    pictures = torch.randn(PICTURES, 4, SIDE, SIDE, generator=generator)
    context, t = captions(generator), torch.full((PICTURES,), 999.0)
    optimizer = Muon(parameter_groups(net), lr=LEARNING_RATE)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * warmup_constant(step, warmup=10)
        noise = torch.randn(pictures.shape, generator=generator)
        loss = (net(noise, t, context) - pictures).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * pictures.var()
