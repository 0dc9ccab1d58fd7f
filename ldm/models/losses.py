"""What judges reconstructions: a discriminator of patches, and a distance as a deep network sees it."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ldm import UserError


class PatchDiscriminator(nn.Module):
    """Convolutions of stride 2 that end in one logit a patch (Isola et al. 2017, app. 6.1.2).

    Args:
        channels: width of the first layer; each further layer doubles it, up to eight times.
        layers: stride-2 convolutions; the patch is 16, 34, 70 pixels wide for 1, 2, 3.
    """

    def __init__(self, *, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.least = 3 << layers  # pixels of a side: two kernels of 4, padded by 1, follow the strides
        widths = [channels * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, width in enumerate(widths[1:]):
            stride = 2 if i < layers - 1 else 1  # 1 for the last of them, as in pix2pix
            # group norm rather than the original's batch norm: no statistics to synchronise between ranks
            parts += [
                nn.Conv2d(widths[i], width, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(min(32, width), width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.initialise()

    def initialise(self) -> None:
        """Normal weights of standard deviation 0.02 (Radford et al. 2016, sec. 3)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 p q"]:
        """Logits of p x q patches: above 0 for real pictures; UserError for pictures without a patch."""
        self.check(images)
        return self.layers(images)

    def check(self, images: Tensor) -> None:
        """Raises UserError for pictures without a patch."""
        if min(images.shape[-2:]) < self.least:
            shape = "x".join(map(str, images.shape[-2:]))
            raise UserError(f"the discriminator got {shape} pixels, needs {self.least}: give it fewer layers")


def hinge_loss(real: Float[Tensor, "b 1 p q"], fake: Float[Tensor, "b 1 p q"]) -> Float[Tensor, ""]:
    """The discriminator's loss (Lim & Ye 2017, eq. 3), half of each side."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def adaptive_weight(
    reconstruction: Float[Tensor, ""],
    adversarial: Float[Tensor, ""],
    last_layer: nn.Parameter,
    *,
    average: Callable[[Sequence[Tensor]], None] = lambda gradients: None,
) -> Float[Tensor, ""]:
    """Weight that makes both gradients at the decoder's last layer equally long (Esser et al. 2021, eq. 7).

    ``average`` replaces the gradients of a rank's part of a batch by those of the whole, in place.
    """
    # graphs are kept: the backward pass of the weighted sum goes through them again
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    average((of_reconstruction, of_adversarial))  # else each rank would have a weight of its own
    # 1e-4 and 1e4 are VQGAN's own: they bound the weight while the discriminator has no gradient yet
    ratio = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    return ratio.clamp(0, 1e4).detach()  # a constant: the decoder must not learn to change its weight


class PerceptualDistance(nn.Module):
    """Mean squared difference of unit features at several depths (Zhang et al. 2018, eq. 1, w = 1).

    Args:
        stages: networks applied one after the other; the features after each are compared. They are frozen.
        mean, std: the normalisation that the network was trained with, for pictures in [0, 1].
    """

    least = 16  # pixels of a side: fewer are no places for a kernel of 3 after strides of 16
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
        """Distance of each pair of pictures in [-1, 1], float32; the gradient flows into both."""
        # float32 even under autocast: the difference of two nearly equal features needs the bits, and on CPUs
        # depthwise convolutions take longer in bfloat16
        with torch.autocast(ours.device.type, enabled=False):
            a, b = self._normalise(ours.float()), self._normalise(theirs.float())
            total = torch.zeros(len(ours), device=ours.device)
            for stage in self.stages:
                a, b = stage(a), stage(b)
                total = total + (_unit(a) - _unit(b)).square().sum(dim=1).mean(dim=(1, 2))
        return total

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images + 1) / 2 - self.mean) / self.std


def _unit(features: Tensor) -> Tensor:
    # length 1 at every pixel: else a few strong channels would decide; 1e-10 is LPIPS's own
    return features / (features.norm(dim=1, keepdim=True) + 1e-10)
