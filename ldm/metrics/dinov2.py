"""DINOv2's features: distances in them agree with people better than in Inception's (Stein et al. 2023)."""

from types import MappingProxyType
from typing import ClassVar

import timm
import torch
from jaxtyping import Float, UInt8
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F

from ldm.metrics.features import FeatureNetwork
from ldm.metrics.weights import digest, load_strictly, locate, read_state

SIZE, PATCH = 224, 14
OFFSET = 0.1  # Oquab et al.'s program adds it to the grid before it stretches the positions


class Dinov2(FeatureNetwork):
    """Class token of DINOv2's ViT-L/14 (Oquab et al. 2024), as FD-DINOv2 takes it.

    Pictures are resized bicubically to 224 px and rounded to 8 bit.

    Args:
        weights: path of the published state; by default where `fetch` puts it.
        sha256: what that file must have; by default the published file's.

    Raises:
        UserError: no weights, other weights, weights of another network.
    """

    name = "dinov2_vitl14"
    size = SIZE
    rounded = True
    architecture: ClassVar[str] = "vit_large_patch14_dinov2"  # timm's name
    dims = MappingProxyType({"dinov2_vitl14": 1024})

    def __init__(self, *, weights: str | None = None, sha256: str | None = None) -> None:
        super().__init__()
        path = locate(self.name, weights, sha256=sha256)
        self.sha256 = digest(path)
        self.net = timm.create_model(self.architecture, img_size=SIZE, num_classes=0)
        state = {name: value for name, value in read_state(path).items() if name != "mask_token"}
        if "pos_embed" in state:
            state["pos_embed"] = stretch_positions(state["pos_embed"], side=SIZE // PATCH)
        load_strictly(self.net, state, source=path)
        self._normalise_by(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.eval().requires_grad_(False)

    def see(self, images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b _"]:
        return self.net(self.normalised(images))


def stretch_positions(positions: Float[Tensor, "1 n d"], *, side: int) -> Float[Tensor, "1 m d"]:
    """Position embeddings, the class token's first, of another square grid: bicubic, without antialiasing."""
    trained = round((positions.shape[1] - 1) ** 0.5)
    if trained == side:
        return positions
    grid = positions[:, 1:].float().unflatten(1, (trained, trained)).permute(0, 3, 1, 2)  # 1 d h w
    grid = F.interpolate(grid, scale_factor=(side + OFFSET) / trained, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)
