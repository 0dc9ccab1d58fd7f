import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from ldm.models.clip import TextTransformer
from ldm.models.meta_init import meta_init

BUILD = """
import sys
from ldm.models.clip import TextTransformer
from ldm.models.attention import TransformerSpec
from ldm.models.text_encoders import ReadingDenoiser, TokenVectors
from ldm.models.unet import UNet
from ldm.models.meta_init import meta_init
with meta_init():
    TextTransformer(vocab_size=100, width=16, num_layers=1, num_heads=2, context_length=8)
    spec = TransformerSpec(context_dim=16, levels=[True], pool_context=True, head_dim=16)
    sizes = {"latent_channels": 4, "channels": 32, "multipliers": [1], "norm_groups": 8}
    net = UNet(**sizes, blocks_per_level=1, transformer=spec)
    TokenVectors(vocab_size=100, context_length=8, width=16)
    ReadingDenoiser(net=net, context_length=8, num_layers=1, num_heads=2)
print("torch._dynamo" in sys.modules)
"""


def make() -> TextTransformer:
    return TextTransformer(vocab_size=100, width=16, num_layers=1, num_heads=2, context_length=8)


def test_an_outline_has_the_shapes_and_no_memory():
    with meta_init():
        drawn = make()
    assert all(tensor.is_meta for tensor in (*drawn.parameters(), *drawn.buffers()))
    shapes = {name: tensor.shape for name, tensor in make().state_dict().items()}
    assert {name: tensor.shape for name, tensor in drawn.state_dict().items()} == shapes


def test_weights_are_drawn_again_after_it():
    with meta_init():
        nn.Linear(4, 4)
    layer = nn.Linear(4, 4)
    assert not layer.weight.is_meta
    assert layer.weight.std() > 0


def test_it_draws_no_random_numbers():
    state = torch.get_rng_state()
    with meta_init():
        make()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_compiler_stays_out():
    done = subprocess.run([sys.executable, "-c", BUILD], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_two_threads_may_build_networks_at_once():
    """torch's hooks are of all threads, and going through them fails where another thread adds one."""

    def build(_):
        with meta_init(most=10**6):
            make()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(build, range(60)))
    finally:
        sys.setswitchinterval(interval)
