"""Distance between pictures as a deep network sees them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class PerceptualDistance(nn.Module):
    """Mean squared difference of unit features at several depths (Zhang et al. 2018, eq. 1, w = 1).

    Args:
        stages: networks applied one after the other; the features after each are compared. They are frozen.
        mean, std: the normalisation that the network was trained with, for pictures in [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        stages: Sequence[nn.Module],
        *,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        # eval: batch norms of the network would else follow our pictures
        self.stages = nn.ModuleList(stages).eval().requires_grad_(False)
        # not persistent: constants of a frozen network have no place in a checkpoint
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, ours: Float[Tensor, "b 3 h w"], theirs: Float[Tensor, "b 3 h w"]
    ) -> Float[Tensor, " b"]:
        """Distance of each pair of pictures in [-1, 1]; the gradient flows into both."""
        a, b = self._normalise(ours), self._normalise(theirs)
        # features have the dtype of autocast; the distances of the stages are added in float32
        total = torch.zeros(len(ours), device=ours.device)
        for stage in self.stages:
            a, b = stage(a), stage(b)
            total = total + (_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2)).float()
        return total

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std


def _unit(features: Tensor) -> Tensor:
    # length 1 at every pixel: else a few strong channels would decide; 1e-10 is LPIPS's own
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)
