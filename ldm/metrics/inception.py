"""InceptionV3 of 2015, the network that FID, KID and the Inception Score are defined by."""

from collections import OrderedDict
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval
from torch_fidelity import feature_extractor_inceptionv3 as blocks

from ldm import UserError
from ldm.metrics.features import FeatureNetwork, resize_pictures
from ldm.metrics.weights import digest, load_strictly, locate, read_state

SIZE = 299
CLASSES = 1008  # the graph of 2015 has eight more than ImageNet


class Preparation(NamedTuple):
    """How a calculator of FID brings pictures to the network: resize mode, and the grey that becomes 0."""

    resize: str
    grey: float


CALCULATORS = MappingProxyType(
    {
        "torch_fidelity": Preparation("tensorflow", 128.0),
        "clean_fid": Preparation("bicubic", 128.0),
        "pytorch_fid": Preparation("bilinear_aliased", 127.5),
        "torchmetrics": Preparation("bilinear", 128.0),  # since its 1.8, unless told otherwise
    }
)


class Inception2015(FeatureNetwork):
    """Pool features and logits of the network of Heusel et al. 2017 and Salimans et al. 2016.

    The logits are without bias, as the Inception Score takes them. Batch norms are folded into their
    convolutions: features move by rounding alone.

    Args:
        like: the calculator whose preparation of pictures is followed, a key of `CALCULATORS`. FIDs of
            different preparations are different numbers.
        weights: path of the state, in torch-fidelity's format; by default where `fetch` puts it.
        sha256: what that file must have; by default the published file's.

    Raises:
        UserError: an unknown calculator, no weights, other weights, weights of another network.
    """

    name = "inception"
    size = SIZE
    dims = MappingProxyType({"inception": 2048, "inception_logits": CLASSES})

    def __init__(
        self, *, like: str = "torch_fidelity", weights: str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__()
        if like not in CALCULATORS:
            raise UserError(f"{like=} is not one of {', '.join(CALCULATORS)}")
        path = locate("inception", weights, sha256=sha256)
        net = inception_2015()
        load_strictly(net, read_state(path), source=path)
        self.resize = like  # the identity names the calculator, not one of our modes
        self.sha256 = digest(path)
        self.trunk, self.classes = net.eval()[:-1], net.fc.weight
        for module in self.trunk.modules():
            if isinstance(module, blocks.BasicConv2d):
                module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # twice as fast on CPU

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        mode, grey = CALCULATORS[self.resize]
        inputs = (resize_pictures(images, size=SIZE, mode=mode) - grey) / grey
        return self.trunk(inputs.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        pooled = super().forward(images)
        return pooled | {"inception_logits": pooled["inception"] @ self.classes.T}


def inception_2015() -> nn.Sequential:
    """The network without weights, of torch-fidelity's blocks and with the names of its published state."""
    conv = blocks.BasicConv2d
    layers = OrderedDict(
        Conv2d_1a_3x3=conv(3, 32, kernel_size=3, stride=2),
        Conv2d_2a_3x3=conv(32, 32, kernel_size=3),
        Conv2d_2b_3x3=conv(32, 64, kernel_size=3, padding=1),
        MaxPool_1=nn.MaxPool2d(3, stride=2),
        Conv2d_3b_1x1=conv(64, 80, kernel_size=1),
        Conv2d_4a_3x3=conv(80, 192, kernel_size=3),
        MaxPool_2=nn.MaxPool2d(3, stride=2),
        Mixed_5b=blocks.InceptionA(192, pool_features=32),
        Mixed_5c=blocks.InceptionA(256, pool_features=64),
        Mixed_5d=blocks.InceptionA(288, pool_features=64),
        Mixed_6a=blocks.InceptionB(288),
        Mixed_6b=blocks.InceptionC(768, channels_7x7=128),
        Mixed_6c=blocks.InceptionC(768, channels_7x7=160),
        Mixed_6d=blocks.InceptionC(768, channels_7x7=160),
        Mixed_6e=blocks.InceptionC(768, channels_7x7=192),
        Mixed_7a=blocks.InceptionD(768),
        Mixed_7b=blocks.InceptionE_1(1280),
        Mixed_7c=blocks.InceptionE_2(2048),
        AvgPool=nn.AdaptiveAvgPool2d(1),
        fc=nn.Linear(2048, CLASSES),
    )
    return nn.Sequential(layers)
